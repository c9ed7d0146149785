"""Priors: the cut of a generator, codes that can be differentiated, files that are refused, training that learns."""

from __future__ import annotations

import dataclasses
import io
import json
import re
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from rddlib.base import SettingError, digest, generator, repository_root
from rddlib.data import dataset
from rddlib.data.dataset import DataSet
from rddlib.data.sources import DataError
from rddlib.distillation.glad import generator as generators
from rddlib.distillation.glad import prior, training
from rddlib.distillation.glad.generator import Generator, GeneratorSettings

TINY = GeneratorSettings(latent=4, width=8, convs=1, steps=3, batch=8, judge_steps=3, flip=False)
SHORT = GeneratorSettings(latent=16, width=32, convs=1, steps=120, batch=32, judge_steps=40, flip=False)


@pytest.fixture(scope="module")
def digits() -> DataSet:
    return dataset.load("digits", train_limit=300, test_limit=200)


@pytest.fixture(scope="module")
def trained(digits: DataSet) -> tuple[Generator, list[dict[str, float]]]:
    history: list[dict[str, float]] = []
    return training.train_generator(digits, SHORT, lambda _, parts: history.append(parts)), history


def colour_set(size: int, n_classes: int = 3) -> DataSet:
    """Random colour images of one size, enough to train or to refuse on."""
    images = torch.randint(0, 256, (24, 3, size, size), generator=generator(0, "colour"), dtype=torch.uint8)
    labels = torch.arange(24) % n_classes
    return DataSet("colour", images, labels, images, labels, tuple("abcdefgh"[:n_classes]), (0.5,) * 3, (0.2,) * 3, "",
                   digest(images))  # fmt: skip


def tiny(size: int = 16) -> Generator:
    return training.train_generator(colour_set(size), TINY)


LABELS = torch.tensor([0, 2, 1, 1])


# --- the cut ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [8, 16, 32])
def test_every_cut_decodes_to_what_the_whole_generator_gives(size: int) -> None:
    """From the codes at layer L, for every L, the images of the unsplit forward pass."""
    net, d = tiny(size), colour_set(size)
    z = torch.randn(4, net.z_dim, generator=generator(3, "z"))
    whole = net(z, LABELS)
    assert whole.std() > 0.01 and len(net.synthesis.layer_names) == net.num_ws - 1
    for layer in range(len(net.synthesis.layer_names)):
        cut = prior.from_generator(net, d, layer)
        codes = cut.encode(torch.empty(0), LABELS, generator(3, "z"))
        assert codes["w"].shape == (4, net.num_ws - 1 - layer, net.z_dim)
        torch.testing.assert_close(cut.decode(codes, LABELS), whole)


def test_a_cut_that_is_off_is_refused() -> None:
    net, d = tiny(8), colour_set(8)
    for layer in (-1, len(net.synthesis.layer_names)):
        with pytest.raises(SettingError, match="prior_layer = "):
            prior.from_generator(net, d, layer)
    with pytest.raises(SettingError, match="prior_start = 'mode'"):
        prior.from_generator(net, d, 0, start="mode")


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_decode_is_differentiable_in_every_code(layer: int) -> None:
    cut = prior.from_generator(tiny(8), colour_set(8), layer)
    labels = torch.tensor([2])
    codes = {k: v.double() for k, v in cut.encode(torch.empty(0), labels, generator(1, "z")).items()}
    cut.network.double()
    names = sorted(codes)
    free = tuple(codes[name].clone().requires_grad_() for name in names)

    def decode(*values: Tensor) -> Tensor:
        return cut.decode(dict(zip(names, values, strict=True)), labels)

    assert torch.autograd.gradcheck(decode, free, fast_mode=True)
    gradients = torch.autograd.grad(decode(*free).square().sum(), free)
    assert all(float(g.abs().max()) > 0 for g in gradients)
    assert set(cut.rates()) == set(codes) and cut.rates()["w"] == 1e-3 * cut.rates()["f"]


TINY_NET = tiny(8)


# --- where codes begin --------------------------------------------------------------------------------------


def test_start_mean_is_the_mean_style_of_a_class() -> None:
    cut = prior.from_generator(TINY_NET, colour_set(8), 0, start="mean")
    w = cut.encode(torch.empty(0), LABELS, generator(0, "z"))["w"]
    assert torch.equal(w[2], w[3]) and not torch.equal(w[0], w[1])
    many = TINY_NET.mapping(
        torch.randn(20000, 4, generator=generator(1, "z")), TINY_NET.one_hot(torch.full((20000,), 1))
    )
    torch.testing.assert_close(w[2], many.mean(0)[1:], atol=0.15, rtol=0)


def test_the_feature_map_is_clipped_at_the_start() -> None:
    net = tiny(8)
    net.synthesis.input.linear.weight.mul_(1e4)
    f = prior.from_generator(net, colour_set(8), 0).encode(torch.empty(0), LABELS, generator(0, "z"))["f"]
    assert float(f.abs().max()) == prior.CLIP


def test_a_start_from_images_is_nearer_to_them_and_steps_bring_it_nearer(
    digits: DataSet, trained: tuple[Generator, list[dict[str, float]]]
) -> None:
    images, labels = digits.train_images[:20].float() / 255, digits.train_labels[:20]
    gap = {}
    for start in ("latent", "project"):
        cut = prior.from_generator(trained[0], digits, 1, start)
        codes = cut.encode(images, labels, generator(0, "z"))
        gap[start] = float((cut.decode(codes, labels) - images).square().mean())
    moved = prior.project(cut, codes, images, labels, steps=20)
    assert float((cut.decode(moved, labels) - images).square().mean()) < 0.5 * gap["project"]
    assert gap["project"] < 0.7 * gap["latent"]


# --- training -----------------------------------------------------------------------------------------------


def test_training_lowers_the_losses_and_learns_the_classes(
    digits: DataSet, trained: tuple[Generator, list[dict[str, float]]]
) -> None:
    net, history = trained
    first, last = (sum(h["pixel"] for h in part) / 10 for part in (history[:10], history[-10:]))
    assert len(history) == SHORT.steps and last < 0.6 * first
    scores = training.score(net, digits, steps=100, width=16)
    untaught = training.score(training.train_generator(digits, dataclasses.replace(SHORT, steps=1)), digits, steps=100,
                              width=16)  # fmt: skip
    assert scores["share"] > 50 > untaught["share"]
    assert scores["frechet_real"] < scores["frechet"] < 0.7 * untaught["frechet"]


def test_training_is_deterministic_and_leaves_global_randomness_alone() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first, again = tiny(8).state_dict(), tiny(8).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(first[name], again[name]) for name in first)
    other = training.train_generator(colour_set(8), dataclasses.replace(TINY, seed=1)).state_dict()
    assert not torch.equal(first["synthesis.layer0.conv.weight"], other["synthesis.layer0.conv.weight"])


def test_noise_of_a_class_has_the_codes_of_its_images(
    digits: DataSet, trained: tuple[Generator, list[dict[str, float]]]
) -> None:
    """The coloured Gaussian has the mean of the encoder's codes, and a covariance no smaller than theirs."""
    mapping = trained[0].mapping
    for c in (0, 7):
        codes = trained[0].encoder(digits.train_images[digits.train_labels == c].float() / 255)
        torch.testing.assert_close(mapping.centre[c], codes.mean(0), atol=2e-3, rtol=2e-3)
        excess = mapping.spread[c] @ mapping.spread[c].T - codes.T.cov(correction=0)
        assert float(torch.linalg.eigvalsh(excess.double()).min()) > -1e-3


@pytest.mark.parametrize("size", [4, 12, 28])
def test_sizes_that_are_no_power_of_two_are_refused(size: int) -> None:
    with pytest.raises(SettingError, match="size = "):
        tiny(size)


def test_frechet_distance_against_its_definition() -> None:
    """Equal samples are at zero; a shift counts its square; diagonal covariances have a closed form."""
    x = torch.randn(4000, 3, generator=generator(0, "x"), dtype=torch.float64)
    assert training.frechet(x, x) == pytest.approx(0, abs=1e-9)
    assert training.frechet(x, x + 2) == pytest.approx(12)
    white = (x - x.mean(0)) @ torch.linalg.inv(torch.linalg.cholesky(x.T.cov())).T
    assert training.frechet(white, 3 * white) == pytest.approx(3 * (3 - 1) ** 2)
    with pytest.raises(SettingError, match="samples = 1"):
        training.frechet(x, x[:1])


# --- files --------------------------------------------------------------------------------------------------


def test_a_file_gives_the_same_generator_back(tmp_path: Path) -> None:
    d = colour_set(8)
    file = generators.save(tmp_path / "colour.safetensors", TINY_NET, d)
    again = generators.read(file, d)
    assert again.settings == TINY and not any(p.requires_grad for p in again.parameters())
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in TINY_NET.state_dict().items())
    cut = prior.load(f"generator:{file}", d, layer=1)
    assert cut.decode(cut.encode(torch.empty(0), LABELS, generator(0, "z")), LABELS).shape == (4, 3, 8, 8)


def test_damaged_files_are_named(tmp_path: Path) -> None:
    d = colour_set(8)
    good = generators.save(tmp_path / "good.safetensors", TINY_NET, d)
    raw, tensors = good.read_bytes(), load_file(good)
    cases = {"missing": None, "empty": b"", "cut": raw[: len(raw) // 2], "text": b"not tensors" * 50}
    for name, content in cases.items():
        file = tmp_path / f"{name}.safetensors"
        if content is not None:
            file.write_bytes(content)
        with pytest.raises(DataError, match=f"{name}.safetensors: cannot be read"):
            generators.read(file)
    head = {"rddlib": json.dumps({"settings": dataclasses.asdict(TINY), "shape": [3, 8, 8], "n_classes": 3})}
    name = "mapping.first.weight"
    wrong = {
        "without_head": (tensors, {}),
        "shape": (tensors | {name: tensors[name][:, 1:].contiguous()}, head),
        "lacks_one": ({k: v for k, v in tensors.items() if k != name}, head),
        "settings": (tensors, {"rddlib": head["rddlib"].replace('"latent": 4', '"latent": -4')}),
    }
    for label, (content, meta) in wrong.items():
        save_file(content, file := tmp_path / f"{label}.safetensors", meta)
        with pytest.raises(DataError, match=f"{label}.safetensors: cannot be read"):
            generators.read(file)
    save_file(tensors | {name: tensors[name] * torch.nan}, file := tmp_path / "nan.safetensors", head)
    with pytest.raises(DataError, match="nan.safetensors: holds numbers that are not finite"):
        generators.read(file)


def test_generators_of_other_data_are_refused(tmp_path: Path) -> None:
    d = colour_set(8)
    file = generators.save(tmp_path / "colour.safetensors", TINY_NET, d)
    with pytest.raises(DataError, match=r"colour.safetensors: made for .* the data have \(\(3, 16, 16\), 3\)"):
        generators.read(file, colour_set(16))
    with pytest.raises(DataError, match="colour.safetensors: made for"):
        generators.read(file, colour_set(8, n_classes=4))
    other = dataclasses.replace(d, sha256="0" * 64)
    with pytest.raises(DataError, match="colour.safetensors: trained on other data"):
        prior.load(f"generator:{file}", other, 0)
    assert prior.load(f"generator:{file}", other, 0, same_data=False).name == "generator"


def test_unknown_priors_are_refused_by_name() -> None:
    d = colour_set(8)
    for name in ("gan", "", "stylegan", "stylegan:", "none:x"):
        with pytest.raises(SettingError, match="prior = "):
            prior.load(name, d, 0)
    with pytest.raises(SettingError, match="prior = 'generator of colour'"):
        prior.load("generator", d, 0)


# --- a StyleGAN of the user's -------------------------------------------------------------------------------

USER_FILE = """
import torch
from torch import nn

class Layer(nn.Module):  # StyleGAN3's calling convention: x, w and named options
    def __init__(self, up):
        super().__init__()
        self.up, self.affine = up, nn.Linear(6, 5)
    def forward(self, x, w, noise_mode="random", force_fp32=False):
        assert force_fp32, "the options of the file did not arrive"
        x = x * self.affine(w)[:, :, None, None]
        return nn.functional.interpolate(x, scale_factor=2.0) if self.up else x

class Last(Layer):
    def forward(self, x, w, **options):
        return super().forward(x, w, **options)[:, :3]

class Synthesis(nn.Module):
    output_scale, layer_names = 0.25, ["L0_8", "L1_8", "L2_3"]
    def __init__(self):
        super().__init__()
        self.input = nn.Sequential(nn.Linear(6, 80), nn.Unflatten(1, (5, 4, 4)))
        self.L0_8, self.L1_8, self.L2_3 = Layer(True), Layer(False), Last(False)
    def forward(self, ws):
        ws = ws.unbind(1)
        x = self.input(ws[0])
        for name, w in zip(self.layer_names, ws[1:]):
            x = getattr(self, name)(x, w, force_fp32=True)
        return x * self.output_scale

class Network(nn.Module):
    z_dim, c_dim = 4, 10
    def __init__(self):
        super().__init__()
        self.embed, self.synthesis = nn.Linear(14, 6), Synthesis()
    def mapping(self, z, c):
        return self.embed(torch.cat([z, c], 1))[:, None].repeat(1, 4, 1)

def load():
    torch.manual_seed(0)
    return Network()

CLASSES = [7, 2, 5]
OPTIONS = {"force_fp32": True}
"""


@pytest.fixture
def user_file(tmp_path: Path) -> Path:
    file = tmp_path / "my_stylegan.py"
    file.write_text(USER_FILE)
    return file


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_a_stylegan_of_the_user_decodes_as_it_would_itself(user_file: Path, layer: int) -> None:
    """Same noise, the classes of the list, every cut: (output + 1) / 2, cut off to [0, 1]."""
    cut = prior.load(f"stylegan:{user_file}", colour_set(8), layer)
    assert isinstance(cut, prior.StylePrior) and cut.name == "stylegan"
    codes = cut.encode(torch.empty(0), LABELS, generator(0, "z"))
    z = torch.randn(4, 4, generator=generator(0, "z"))
    c = nn.functional.one_hot(torch.tensor([7, 5, 2, 2]), 10).float()
    whole = cut.network.synthesis(cut.network.mapping(z, c))
    assert codes["w"].shape == (4, 3 - layer, 6) and not any(p.requires_grad for p in cut.network.parameters())
    torch.testing.assert_close(cut.decode(codes, LABELS), ((whole + 1) / 2).clamp(0, 1))


def test_a_stylegan_of_another_size_is_resized(user_file: Path) -> None:
    cut = prior.load(f"stylegan:{user_file}", colour_set(16), 1)
    codes = {k: v.requires_grad_() for k, v in cut.encode(torch.empty(0), LABELS, generator(0, "z")).items()}
    images = cut.decode(codes, LABELS)
    images.sum().backward()
    assert images.shape == (4, 3, 16, 16) and all(v.grad is not None for v in codes.values())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("CLASSES = [7, 2, 5]", ""), "CLASSES"),
        (("return Network()", "raise RuntimeError('no weights here')"), "no weights here"),
        (("def load", "def make"), "load"),
        (("import torch", "import torch, ("), "SyntaxError"),
    ],
)
def test_files_of_the_user_that_fail_are_named(user_file: Path, change: tuple[str, str], said: str) -> None:
    user_file.write_text(USER_FILE.replace(*change))
    with pytest.raises(DataError, match=f"my_stylegan.py: cannot be used as a prior.*{said}"):
        prior.load(f"stylegan:{user_file}", colour_set(8), 0)
    with pytest.raises(DataError, match="nowhere.py: cannot be used"):
        prior.load(f"stylegan:{user_file.parent / 'nowhere.py'}", colour_set(8), 0)


@pytest.mark.parametrize("classes", ["[7, 2]", "[7, 2, 10]", "[-1, 2, 3]"])
def test_classes_that_do_not_fit_are_refused(user_file: Path, classes: str) -> None:
    user_file.write_text(USER_FILE.replace("[7, 2, 5]", classes))
    with pytest.raises(SettingError, match="classes = "):
        prior.load(f"stylegan:{user_file}", colour_set(8), 0)


def test_a_start_from_images_needs_an_encoder(user_file: Path) -> None:
    with pytest.raises(SettingError, match="prior_start = 'project': allowed is one of latent, mean"):
        prior.load(f"stylegan:{user_file}", colour_set(8), 0, start="project")


# --- what is kept -------------------------------------------------------------------------------------------


def test_what_is_kept_of_a_generator(tmp_path: Path) -> None:
    """Weights, record and sheet; the losses as means of stretches that cover every update."""
    d, history = colour_set(8), [{"pixel": float(i)} for i in range(120)]
    record = training.keep(tmp_path, TINY_NET, d, history, seconds=1.5)
    kept = json.loads((tmp_path / "colour.json").read_text())
    assert kept.pop("checksum") and kept == record
    assert record["seconds"] == 1.5 and record["weights_sha256"] == digest(
        (tmp_path / "colour.safetensors").read_bytes()
    )
    means, length = record["losses"]["pixel"], record["updates_a_stretch"]
    assert length * len(means) == 120 and sum(means) / len(means) == pytest.approx(59.5)
    with Image.open(tmp_path / "colour.png") as picture:
        assert picture.size == (10 * 8, 3 * 8) and picture.mode == "RGB"
    assert generators.read(tmp_path / "colour.safetensors", d).settings == TINY


def test_a_sheet_stays_below_its_size(monkeypatch: pytest.MonkeyPatch) -> None:
    full = training.sheet(TINY_NET)
    monkeypatch.setattr(training, "SHEET_BYTES", len(full) - 1)
    small = training.sheet(TINY_NET)
    assert len(small) < len(full)
    with Image.open(io.BytesIO(small)) as a, Image.open(io.BytesIO(full)) as b:
        assert a.size[0] < b.size[0] and a.size[1] == b.size[1]
        assert a.tobytes() == b.crop((0, 0, *a.size)).tobytes()


FOLDER = repository_root() / "data" / "priors"
KEPT = sorted({"digits", "cifar10"} | {p.stem for p in FOLDER.glob("*.safetensors")})


@pytest.mark.parametrize("name", KEPT)
def test_a_kept_generator_fits_its_record(name: str) -> None:
    file, record = FOLDER / f"{name}.safetensors", json.loads((FOLDER / f"{name}.json").read_text())
    net = generators.read(file)
    assert file.stat().st_size == record["bytes"] <= 1e6 and digest(file.read_bytes()) == record["weights_sha256"]
    assert dataclasses.asdict(net.settings) == record["settings"] and list(net.shape) == record["shape"]
    assert sum(p.numel() for p in net.parameters()) == record["parameters"]
    picture = FOLDER / f"{name}.png"
    assert picture.stat().st_size <= 150_000
    scores = record["scores"]
    assert scores["frechet_real"] < scores["frechet"] and 100 / net.c_dim < scores["share"] <= 100
    assert not re.search(r"/(home|root|work|tmp)/", json.dumps(record))
    with Image.open(picture) as image:  # the sheet shows what these weights give
        assert image.size[1] == net.c_dim * net.shape[1]
        drawn = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    with Image.open(io.BytesIO(training.sheet(net))) as again:
        shown = torch.frombuffer(bytearray(again.tobytes()), dtype=torch.uint8)
    assert len(drawn) == len(shown) and float((drawn.int() - shown.int()).abs().float().mean()) < 1


def test_the_kept_generator_of_the_digits_is_of_these_digits_and_good() -> None:
    whole = dataset.load("digits")
    source = prior.load("generator", whole, layer=1)
    labels = torch.arange(10).repeat_interleave(20)
    images = source.decode(source.encode(torch.empty(0), labels, generator(0, "z")), labels)
    judge = training.train_judge(whole, 100, 16, 3)
    assert (judge(whole.normalise(images)).argmax(1) == labels).float().mean() > 0.8
