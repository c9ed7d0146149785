# Runs, notebooks and book as one graph:  snakemake --cores 2 --config scale=laptop
#
# A run is a job, and its record is what the job makes; the grids say which runs there are. Records come first, then the notebooks
# that read them, then the book with the notebooks as they have just run. A run is never done twice, whoever made it, and one that
# was stopped goes on from its checkpoint when the job is tried again; where two runs share a distilled set, one waits for the
# other. So this file says only what depends on what. A page depends on the records of the grids that its code asks for; one that
# asks for none may read any. A change of the library has the notebooks run again, and no run. Claims, notes on pages and
# measurements count for what reads them. Nothing else in the repository needs Snakemake.
#
# --config scale=laptop    smoke, laptop, cpu, gpu or paper
#          grids=table1,table2    only these (default all of data/grids)
#          notebooks=none  only these, by name; none: stop after the runs
#          device=cpu      or cuda: each run then asks for one GPU
#          minutes=50      a run stops then, keeping its checkpoint, and is tried again (--retries N); default: no limit
#          python=PATH     the Python that has rddlib (default .venv/bin/python, else the one of Snakemake)
# A cluster: snakemake --workflow-profile profiles/slurm --config scale=gpu device=cuda minutes=590

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

SCALES = ("smoke", "laptop", "cpu", "gpu", "paper")
SCALE, DEVICE = str(config.get("scale", "laptop")), str(config.get("device", "cpu"))
if SCALE not in SCALES:
    sys.exit(f"Snakefile: scale = {SCALE!r}: allowed is one of {', '.join(SCALES)}")
VENV = Path(".venv/bin/python")
PYTHON = str(config.get("python") or (VENV if VENV.exists() else sys.executable))
WORK = f"_build/graph/{SCALE}"
STORE = str(Path(os.environ.get("RDD_STORE") or "data"))


def files(*patterns):
    """The files that are there, in order."""
    return [str(path) for pattern in patterns for path in sorted(Path().glob(pattern))]


LIBRARY = files("rddlib/**/*.py")
COVERAGE, PAPER, TOML = files("data/coverage/*.json"), files("data/paper/*"), files("data/grids/*.toml")
BOOK = files("book/*.md", "book/*.py", "book/*.bib", "_toc.yml", "_config.yml", "notebooks/*.ipynb", "data/claims.csv",
             "data/pages.json", "benchmarks/results/*") + COVERAGE + PAPER + TOML
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
    """What a page reads beside the library: the runs of the grids that it asks for, or all records, and measurements."""
    if name not in READERS:
        return []
    text = code(name)
    own = [Path(toml).stem for toml in TOML if f'Page.of("{Path(toml).stem}"' in text]
    measured = COVERAGE if "coverage." in text else []
    if not own:
        return [str(KNOWN), *PAPER, *measured]
    return [f"data/grids/{grid}.toml" for grid in own] + runs_of(set(own) & set(GRIDS)) + PAPER + measured


def options(name):
    """Papermill's options: the committed scale is read; at smoke what no grid made is made by the page itself."""
    has = {line.partition("=")[0].strip() for line in PAGES[name].splitlines() if "=" in line}
    given = {"scale": SCALE, "mode": "run" if SCALE == "smoke" else "load"} if SCALE != "laptop" else {}
    if SCALE == "smoke":
        given["dataset"] = "digits"
    return " ".join(f"-p {key} {value}" for key, value in given.items() if key in has)


def records():
    """A hash of which records there are; a record's file is written once, so its name, size and time tell it."""
    seen = []
    for path in sorted(Path(STORE).glob("runs/*/*.json")):
        about = path.stat()
        seen.append((str(path), about.st_size, about.st_mtime_ns))
    return hashlib.sha256(json.dumps(seen).encode()).hexdigest()


def planned():
    """The runs that the grids ask for at this scale, the most valuable first: asked of the library, once for each state of both."""
    file = Path(WORK, "runs.json")
    newest = max(Path(path).stat().st_mtime for path in TOML + LIBRARY)
    if workflow.is_main_process and not (file.exists() and file.stat().st_mtime > newest):
        command = [PYTHON, "-m", "rddlib", "grid", *TOML, "--scale", SCALE, "--json"]
        told = subprocess.run(command, capture_output=True, text=True)
        if told.returncode:
            sys.exit(f"Snakefile: {' '.join(command)}: {told.stderr}")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(told.stdout)
    return json.loads(file.read_text())


def record_of(run):
    """Where the record of a run lies, or will lie."""
    return RECORDS.get(run["key"], f"{STORE}/runs/{run['group']}/{run['key']}.json")


def asked_by(run):
    """The grids that ask for a run."""
    return {arm.partition("/")[0] for arm in run["arms"]}


def runs_of(grids):
    """The records of the runs that these grids ask for."""
    return [record_of(run) for run in RUNS if asked_by(run) & grids]


def set_made_by(key):
    """The record of the run that makes the distilled set of this one, where that is another."""
    set_key = MISSING[key]["set_key"]
    if not set_key or Path(STORE, "distilled", f"{set_key}.npz").exists():
        return []
    first = next(run for run in MISSING.values() if run["set_key"] == set_key)
    return [] if first["key"] == key else record_of(first)


GRIDS = chosen("grids", sorted(p.stem for p in Path("data/grids").glob("*.toml")))
# The quickstart is run by the book's own build.
PAGES = {p.stem: code(p.stem, "parameters") for p in sorted(Path("notebooks").glob("*.ipynb")) if not p.stem.startswith("00_")}
NOTEBOOKS = chosen("notebooks", list(PAGES))
READERS = [name for name in NOTEBOOKS if "mode" in PAGES[name]]  # the others compute what they show

RUNS = planned()
RECORDS = {path.stem: str(path) for path in Path(STORE).glob("runs/*/*.json")}
MISSING = {run["key"]: run for run in RUNS if run["key"] not in RECORDS and asked_by(run) & set(GRIDS)}

# Records that came from elsewhere (`python -m rddlib merge`) since the notebooks last ran: this marks them as changed.
MARK, KNOWN = Path(WORK, "records.seen"), Path(WORK, "records.txt")
if not MARK.exists() or (KNOWN.exists() and KNOWN.read_text() != records()):
    MARK.parent.mkdir(parents=True, exist_ok=True)
    MARK.write_text(records())


localrules: all, records


rule all:
    input:
        [f"{WORK}/book.done"] if NOTEBOOKS else [str(KNOWN)],


rule run:
    input:
        lambda wildcards: set_made_by(wildcards.key),
    output:
        update(f"{STORE}/runs/{{group}}/{{key}}.json"),  # not removed before the job, should another call have made it
    wildcard_constraints:
        key="|".join(MISSING) or "none",  # records that are there are made by nobody
    log:
        f"{WORK}/runs/{{group}}/{{key}}.log",
    params:
        grid=lambda wildcards: f"data/grids/{MISSING[wildcards.key]['arms'][0].partition('/')[0]}.toml",
    priority: lambda wildcards: MISSING[wildcards.key]["value"]
    threads: int(config.get("threads", 1))
    resources:
        mem_mb=4000,
        **({"gpu": 1} if DEVICE.startswith("cuda") else {}),
    shell:
        "OMP_NUM_THREADS={threads} {PYTHON} -m rddlib grid {params.grid} --scale {SCALE} --only {wildcards.key}"
        " --store {STORE} --device {DEVICE} {MINUTES}"
        " > {log} 2>&1 || {{ status=$?; tail -n 20 {log} >&2; exit $status; }}"


rule records:
    input:
        runs_of(set(GRIDS)),
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
