"""Output paths of ``ase-definet relax``, determined and checked before any work is done."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ase_definet.cli.common import BadUsage, check_folder, file_format
from ase_definet.cli.states import AskedState, folder_of, marked
from ase_definet.errors import StructureError
from ase_definet.structures.reading import COMPRESSED

CONTROL = "_unrelaxed"
"""Added to the folder of an input set for that of the control run."""


@dataclass(frozen=True)
class Job:
    """One result of an input file and where it goes.

    Attributes:
        source: The input file.
        output: The relaxed structure.
        inputs: Folder of the input set, if one was asked for.
        control: Folder of the same for the unrelaxed structure, if one was asked for.
        state: What is asked of the state of the structure, with one charge at most.
        code: The DFT code of the input set.
    """

    source: Path
    output: Path
    inputs: Path | None
    control: Path | None = None
    state: AskedState = field(default_factory=AskedState)
    code: str = "vasp"

    @property
    def title(self) -> str:
        """What to call it beside other results."""
        charge = self.state.charge
        return str(self.source) if charge is None else f"{self.source}, charge {f'{charge:+d}' if charge else '0'}"


def plan_jobs(
    files: tuple[Path, ...],
    output: Path | None,
    output_dir: Path | None,
    inputs: Path | None,
    report: Path | None,
    *,
    code: str = "vasp",
    control: bool = False,
    state: AskedState | None = None,
    overwrite: bool,
) -> list[Job]:
    """Determine the output paths; reject invalid combinations.

    Of several charges each has its results, with the charge in their names: ``out_q-1.vasp``, ``run_q+2``.

    Raises:
        BadUsage: Results would replace an input, each other or, without ``overwrite``, existing files; or a
            place or a format cannot be written to.
    """
    if output is not None and len(files) > 1:
        raise BadUsage(f"-o names one output, but {len(files)} files were given: use --output-dir")
    if output is not None and output_dir is not None:
        raise BadUsage("expected -o or --output-dir, found both: leave one out")
    if control and inputs is None:
        raise BadUsage(
            "--from-unrelaxed writes a second input set: say where the first goes with --vasp FOLDER or --dft CODE "
            "FOLDER"
        )
    asked = state or AskedState()
    jobs = []
    for file, folder in zip(files, _input_set_folders(files, inputs), strict=True):
        out = output or (output_dir or file.parent) / _relaxed_name(file)
        for one in asked.each():
            mark = one.suffix if asked.several else ""
            place = folder_of(folder, one) if folder is not None and asked.several else folder
            beside = _beside(place, control=control)
            jobs.append(Job(file, marked(out, mark) if mark else out, place, beside, state=one, code=code))
    targets = list(_targets(jobs, report))
    _refuse_clashes(jobs, targets)
    if output is not None:
        _refuse_format(output, files[0])
    if not overwrite:
        _refuse_existing([path for path, _ in targets])
    for folder in {path.parent for path, _ in targets}:
        check_folder(folder)
    return jobs


def _input_set_folders(files: tuple[Path, ...], inputs: Path | None) -> list[Path | None]:
    """Return the folder of each input set: the one that was named, or, of several files, one in it for each."""
    if inputs is None:
        return [None] * len(files)
    return [inputs] if len(files) == 1 else [inputs / _stem(file).stem for file in files]


def _beside(folder: Path | None, *, control: bool) -> Path | None:
    """Return the folder of the control run, if one was asked for."""
    return folder.with_name(f"{folder.name}{CONTROL}") if folder is not None and control else None


def _refuse_format(output: Path, source: Path) -> None:
    """Refuse an output whose name stands for a format of its own that ASE cannot write."""
    if output.suffix == _stem(source).suffix:
        return
    try:
        named_format(output)
    except StructureError as error:
        raise BadUsage(str(error)) from error


def _refuse_existing(targets: list[Path]) -> None:
    existing = [path for path in targets if path.exists()]
    if existing:
        others = len(existing) - 1
        count = f"{existing[0]} and {others} more exist" if others else f"{existing[0]} exists"
        raise BadUsage(f"{count}: pass --overwrite to replace what is there, or choose another output")


def output_format(job: Job) -> str:
    """Return the format of an output: that of the input, unless the output's name has a suffix of its own.

    Raises:
        StructureError: ASE cannot write it.
    """
    if job.output.suffix != _stem(job.source).suffix:
        return named_format(job.output)
    return _writable(job.output, file_format(job.source))


def _stem(file: Path) -> Path:
    """Return the name of a file without the suffix of its compression: results are written plainly."""
    name = Path(file.name or file.resolve().name)  # "." has none
    return Path(name.stem) if name.suffix.lower() in COMPRESSED else name


def _relaxed_name(file: Path) -> str:
    plain = _stem(file)
    return f"{plain.stem}_relaxed{plain.suffix}"


def _targets(jobs: list[Job], report: Path | None) -> Iterator[tuple[Path, str]]:
    """Yield every file that will be written, and what it is."""
    for job in jobs:
        yield job.output, f"the output of {job.source}"
        for folder in filter(None, (job.inputs, job.control)):
            from ase_definet.dft.codes import CODES

            for name in (*CODES[job.code].writes, "README.txt"):
                yield folder / name, f"the input set of {job.source}"
    if report is not None:
        yield report, "the report"


def _refuse_clashes(jobs: list[Job], targets: list[tuple[Path, str]]) -> None:
    sources = {job.source.resolve() for job in jobs}
    seen: dict[Path, str] = {}
    for path, what in targets:
        place = path.resolve()
        if place in sources:
            raise BadUsage(f"{what} would replace the input {path}: choose another output, or leave that input out")
        if place in seen:
            raise BadUsage(f"{seen[place]} and {what} would both be {path}: rename one, or run them one at a time")
        seen[place] = what


def named_format(path: Path) -> str:
    """Return the format that the name of a new file stands for."""
    from ase.io.formats import UnknownFileTypeError, filetype, ioformats

    try:
        fmt = str(filetype(str(path), read=False))
    except UnknownFileTypeError:
        fmt = ""
    if fmt not in ioformats:  # ASE takes any suffix it does not know for a format
        raise StructureError(f"{path}: ASE knows no format of this name; name it like x.cif or x.vasp")
    return _writable(path, fmt)


def _writable(path: Path, fmt: str) -> str:
    from ase_definet.structures.writing import check_format

    check_format(path, fmt)
    return fmt
