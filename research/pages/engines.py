"""Write docs/engines.md: what the network and each potential say of one defect per kind of host.

Run as ``python -m research.pages.engines`` after research/results/engines.json or the table of calculators changed; a
test compares the page with them.
"""

from collections.abc import Mapping
from typing import Any

from ase_definet.relaxation.calculators import CALCULATORS
from research.pages.markdown import listed, reflowed, table, without_name
from research.pages.stored import result
from research.paths import DOCS

PAGE = DOCS / "engines.md"
DIRECTIONS = ("outward", "inward")
"""In which neighbours may be expected to move."""


def page() -> str:
    """Return the whole page."""
    found = result("engines")
    return reflowed([*head(found), *summary(found), *cases(found), *minima(found), *names()])


def head(found: Mapping[str, Any]) -> list[str]:
    """Return the introduction."""
    engines = found["engines"]
    missing = [f"{name} ({without_name(entry['reason'])})" for name, entry in engines.items() if "reason" in entry]
    packages = [
        f"`{name}` ({entry['package']})" for name, entry in engines.items() if "cases" in entry and "package" in entry
    ]
    lines = [
        "# Which engine for my defect?",
        "",
        (
            "The network answers at once, with an expected error, where its training data support it; elsewhere a calculator "
            "relaxes what the network does not know ([calculators.md](calculators.md)). This page shows what each engine says "
            "of one defect per kind of host, from the host's ideal sites, at fixed cell."
        ),
        "",
        (
            f"`{found['command']} NAME` measured it: relaxed to {found['fmax']:g} eV/Å or {found['max_steps']} force evaluations, "
            f"with {listed(packages)}; seconds are those of one CPU core. The network's rows are its answers with `--extrapolate`: by default, the atoms stay on the "
            "host's sites where it is not expected to beat them."
        ),
        "",
    ]
    if missing:
        lines += [f"Not measured: {'; '.join(missing)}.", ""]
    return lines


def measured(found: Mapping[str, Any]) -> dict[str, Any]:
    """Return the engines that were run on every defect."""
    return {
        name: entry
        for name, entry in found["engines"].items()
        if set(entry.get("cases", {})) == set(found["expected"])
    }


def summary(found: Mapping[str, Any]) -> list[str]:
    """Return the table of what is as expected."""
    engines = measured(found)
    rows = []
    for case, expected in found["expected"].items():
        still = found["still"] if expected in DIRECTIONS else 0
        words = [_verdict(entry["cases"][case], still) for entry in engines.values()]
        rows.append([case, _expectation(found, case, expected), *words])
    return [
        "## In short",
        "",
        (
            "`yes`: the neighbours move as DFT is known to move them; `no`: they move the other way. `outside` is the network's own "
            "judgement of what it says."
        ),
        "",
        *table(["defect", "expected", *engines], rows),
    ]


def _expectation(found: Mapping[str, Any], case: str, expected: str) -> str:
    shell = found["shell"][case]
    return f"{shell} {expected}" if expected in DIRECTIONS else expected


def _verdict(entry: Mapping[str, Any], still: float) -> str:
    if "refused" in entry:
        return "needs a calculator"
    word = "yes" if entry["as_expected"] else "no"
    if abs(entry["moved"]) < still:
        word = "hardly moves"
    if not entry.get("converged", True):
        word += ", not converged"
    return f"{word}, {entry['trust']}" if "trust" in entry else word


def cases(found: Mapping[str, Any]) -> list[str]:
    """Return a table for each defect."""
    out = ["## Defect by defect", ""]
    for case in found["expected"]:
        shell = found["shell"][case]
        rows = []
        for name, engine in measured(found).items():
            entry = engine["cases"][case]
            if "refused" in entry:
                rows.append([name, "", "", "", "", "refused: it needs a calculator"])
                continue
            words = f"trust {entry['trust']}" if "trust" in entry else _state(entry)
            numbers = [f"{entry['distance']:.3f}", f"{entry['moved']:+.3f}"]
            steps = f"{entry['steps']}" if "steps" in entry else "one pass"
            rows.append([name, *numbers, steps, f"{entry['seconds']:.1f}", words])
        atoms = next(e["cases"][case]["atoms"] for e in measured(found).values())
        out += [f"### {case}", "", f"{atoms} atoms; distance of the {shell} from the defect, on average, in Å.", ""]
        out += table(["engine", "distance", "moved", "steps", "seconds", ""], rows)
    return out


def _state(entry: Mapping[str, Any]) -> str:
    return "converged" if entry["converged"] else f"not converged, {entry['fmax']:.3f} eV/Å"


def minima(found: Mapping[str, Any]) -> list[str]:
    """Return what the search for the minima of v_Cd in CdTe found."""
    engines = {name: entry["v_Cd"] for name, entry in measured(found).items() if "v_Cd" in entry}
    if not engines:
        return []
    limit = found["dimer_limit"]
    have = [
        name for name, entry in engines.items() if min([*entry["shortest_te_te"], entry["held"]["let_go"]]) < limit
    ]
    rows = []
    for name, entry in engines.items():
        lengths = [
            f"{row['above']:.3f} eV: {row['symmetry']}, Te-Te {te:.2f}, {row['found']} starts"
            for row, te in zip(entry["variants"], entry["shortest_te_te"], strict=True)
        ]
        held = entry["held"]
        rows.append(
            [
                name,
                "; ".join(lengths),
                f"{held['above']:+.3f}",
                f"{held['let_go']:.2f} ({held['let_go_above']:+.3f} eV)",
                f"{entry['steps']}",
            ]
        )
    some = next(iter(engines.values()))
    verdict = (
        f"The dimer is a minimum of {listed([f'`{name}`' for name in have])}."
        if have
        else "None of these potentials has the dimer as a minimum: what begins as a dimer ends in the symmetric one, also when "
        "two Te are first held at the dimer's distance and then let go. The row says how high the held dimer lies. These "
        "potentials were trained on bulk crystals near equilibrium, and the two electrons that the neutral vacancy lacks "
        "are not in them: take the starts, which `variants` writes to `unrelaxed/`, to DFT."
    )
    return [
        "## The minima of v_Cd in CdTe",
        "",
        (
            "With hybrid functionals the neutral vacancy forms a Te-Te dimer, lower in energy than the symmetric structure, in which a "
            "relaxation from the ideal sites ends. `ase-definet variants POSCAR_v_Cd --host CdTe --calculator NAME -n "
            f"{some['starts']}` looked for it; two Te were also held {some['held']['distance']:.2f} Å apart, all else relaxed, "
            "and let go."
        ),
        "",
        *table(
            [
                "potential",
                "minima (energy above the lowest, point group, shortest Te-Te in Å)",
                "dimer held, eV above",
                "Te-Te once let go, Å",
                "force evaluations",
            ],
            rows,
        ),
        verdict,
        "",
    ]


def names() -> list[str]:
    """Return the table of calculators."""
    rows = []
    for name, entry in CALCULATORS.items():
        weights = "" if entry.weights == "none" else entry.weights
        rows.append([f"`{name}`", entry.what, weights, entry.offline, entry.install.replace("pip install ", "")])
    return [
        "## Names",
        "",
        (
            "What `--calculator` takes, besides `package.module:callable` for any other; `ase-definet calculators` says which are "
            "ready on your machine. A potential that has to download its weights says so first."
        ),
        "",
        *table(["name", "what it is", "weights", "without network", "install"], rows),
    ]


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
