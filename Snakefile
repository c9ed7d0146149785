# Grids, notebooks and book as one graph:  snakemake --cores 2 --config scale=laptop
#
# A grid's runs come first, then the notebooks that read records, then the book with the notebooks as they have just run.
# A run is never done twice, whoever made it: calls share the store (rddlib/experiments/workers.py), and a call that was stopped goes
# on. So this file says only what depends on what. Library files are inputs: a change has the grids asked again (seconds,
# records that are there stay) and the notebooks run again. A page depends on the grids that its code asks for; one that asks
# for none may read any record. Claims, notes on pages and measurements count for what reads them. Nothing else in the
# repository needs Snakemake.
#
# --config scale=laptop    smoke, laptop, gpu or paper
#          grids=table1,table2    only these (default all of data/grids)
#          notebooks=none  only these, by name; none: stop after the grids
#          calls=1         calls of each grid side by side; on a cluster each is a job of its own
#          device=cpu      or cuda: each call then asks for one GPU
#          minutes=50      a call stops then, keeping checkpoints, and is tried again (--retries N); default: no limit
#          python=PATH     the Python that has rddlib (default .venv/bin/python, else the one of Snakemake)
# A cluster: snakemake --workflow-profile profiles/slurm --config scale=gpu device=cuda calls=8

import hashlib
import json
import os
import sys
from pathlib import Path

SCALES = ("smoke", "laptop", "cpu", "gpu", "paper")
SCALE, DEVICE = str(config.get("scale", "laptop")), str(config.get("device", "cpu"))
if SCALE not in SCALES:
    sys.exit(f"Snakefile: scale = {SCALE!r}: allowed is one of {', '.join(SCALES)}")
VENV = Path(".venv/bin/python")
PYTHON = str(config.get("python") or (VENV if VENV.exists() else sys.executable))
WORK = f"_build/graph/{SCALE}"


def files(*patterns):
    """The files that are there, in order."""
    return [str(path) for pattern in patterns for path in sorted(Path().glob(pattern))]


LIBRARY = files("rddlib/**/*.py")
COVERAGE, PAPER, TOML = files("data/coverage/*.json"), files("data/paper/*"), files("data/grids/*.toml")
BOOK = files("book/*.md", "book/*.py", "book/*.bib", "_toc.yml", "_config.yml", "notebooks/*.ipynb", "data/claims.csv",
             "data/pages.json", "benchmarks/results/*") + COVERAGE + PAPER + TOML
CALLS = range(int(config.get("calls", 1)))
MINUTES = f"--budget-minutes {config['minutes']}" if config.get("minutes") else ""


def chosen(key, there):
    """The names that --config KEY=a,b asks for, all by default; an unknown one ends the call."""
    wanted = [name for name in str(config.get(key, ",".join(there))).split(",") if name and name != "none"]
    if unknown := sorted(set(wanted) - set(there)):
        sys.exit(f"Snakefile: {key} = {unknown[0]!r}: allowed is none, or some of {', '.join(there)}")
    return wanted


def code(name, tag=None):
    """The code of a notebook, or that of its cell tagged `parameters`."""
    cells = json.loads(Path(f"notebooks/{name}.ipynb").read_text(encoding="utf-8"))["cells"]
    chosen = [c for c in cells if c["cell_type"] == "code" and (not tag or tag in c["metadata"].get("tags", []))]
    return "\n".join("".join(c["source"]) for c in chosen)


def read_by(name):
    """What a page reads beside the library: the grids that it asks for, or all records, and measurements."""
    if name not in READERS:
        return []
    text = code(name)
    own = [Path(toml).stem for toml in TOML if f'Page.of("{Path(toml).stem}"' in text]
    done = [f"{WORK}/{grid}.{call}.done" for grid in own if grid in GRIDS for call in CALLS]
    found = [*(f"data/grids/{grid}.toml" for grid in own), *done, str(MARK)] if own else [str(KNOWN)]
    return found + PAPER + (COVERAGE if "coverage." in text else [])


def options(name):
    """Papermill's options: the committed scale is read; at smoke what no grid made is made by the page itself."""
    has = {line.partition("=")[0].strip() for line in PAGES[name].splitlines() if "=" in line}
    given = {"scale": SCALE, "mode": "run" if SCALE == "smoke" else "load"} if SCALE != "laptop" else {}
    if SCALE == "smoke":
        given["dataset"] = "digits"
    return " ".join(f"-p {key} {value}" for key, value in given.items() if key in has)


def records():
    """A hash of which records there are; a record's file is written once, so its name, size and time tell it."""
    root = Path(os.environ.get("RDD_STORE") or "data")
    seen = [(str(p), (s := p.stat()).st_size, s.st_mtime_ns) for p in sorted(root.glob("runs/*/*.json"))]
    return hashlib.sha256(json.dumps(seen).encode()).hexdigest()


GRIDS = chosen("grids", sorted(p.stem for p in Path("data/grids").glob("*.toml")))
# The quickstart is run by the book's own build.
PAGES = {p.stem: code(p.stem, "parameters") for p in sorted(Path("notebooks").glob("*.ipynb")) if not p.stem.startswith("00_")}
NOTEBOOKS = chosen("notebooks", list(PAGES))
READERS = [name for name in NOTEBOOKS if "mode" in PAGES[name]]  # the others compute what they show

# Records that came from elsewhere (`python -m rddlib merge`) since the notebooks last ran: this marks them as changed.
MARK, KNOWN = Path(WORK, "records.seen"), Path(WORK, "records.txt")
if not MARK.exists() or (KNOWN.exists() and KNOWN.read_text() != records()):
    MARK.parent.mkdir(parents=True, exist_ok=True)
    MARK.write_text(records())


localrules: all, records


rule all:
    input:
        [f"{WORK}/book.done"] if NOTEBOOKS else [f"{WORK}/records.txt"],


rule grid:
    input:
        "data/grids/{grid}.toml",
        LIBRARY,
    output:
        touch(f"{WORK}/{{grid}}.{{call}}.done"),
    log:
        f"{WORK}/{{grid}}.{{call}}.log",
    threads: int(config.get("threads", 1))
    resources:
        mem_mb=4000,
        **({"gpu": 1} if DEVICE.startswith("cuda") else {}),
    shell:
        "OMP_NUM_THREADS={threads} {PYTHON} -m rddlib grid {wildcards.grid} --scale {SCALE} --device {DEVICE} {MINUTES}"
        " > {log} 2>&1 || {{ status=$?; tail -n 20 {log} >&2; exit $status; }}"


rule records:
    input:
        expand(f"{WORK}/{{grid}}.{{call}}.done", grid=GRIDS, call=CALLS),
        str(MARK),
    output:
        str(KNOWN),
    run:
        Path(output[0]).write_text(records())


rule notebook:
    input:
        "notebooks/{name}.ipynb",
        LIBRARY,
        lambda wildcards: read_by(wildcards.name),
    output:
        f"{WORK}/notebooks/{{name}}.ipynb",
    log:
        f"{WORK}/notebooks/{{name}}.log",
    params:
        options=lambda wildcards: options(wildcards.name),
    shell:
        "OMP_NUM_THREADS=1 MPLBACKEND= {PYTHON} -m papermill --no-progress-bar -k python3 {params.options} {input[0]} {output} "
        " > {log} 2>&1 || {{ status=$?; tail -n 20 {log} >&2; exit $status; }}"


rule book:
    input:
        expand(f"{WORK}/notebooks/{{name}}.ipynb", name=NOTEBOOKS),
        str(KNOWN),
        BOOK,
    output:
        touch(f"{WORK}/book.done"),
    log:
        f"{WORK}/book.log",
    shell:
        "{PYTHON} book/build.py --executed {WORK}/notebooks"
        " > {log} 2>&1 || {{ status=$?; tail -n 20 {log} >&2; exit $status; }}"
