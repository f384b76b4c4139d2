"""A campaign for other programs and for a browser: JSON, JUnit, and one page that needs nothing else."""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple
from xml.etree import ElementTree as ET

import msgspec

from chaos.campaign import Asked, Finding, Ran
from chaos.history import Made


class Report(NamedTuple):
    """A campaign that is over: what was asked, what made it, what each suite came to, how long it took, where findings lie."""

    asked: Asked
    made: Made
    ran: Sequence[Ran]
    seconds: float
    saved: Sequence[tuple[Finding, str]] = ()

    def command(self, finding: Finding) -> str:
        """What replays a finding; "" for one that was not written down."""
        return next((f"python -m chaos replay {path}" for one, path in self.saved if one is finding), "")

    @property
    def passed(self) -> bool:
        """Whether every suite passed."""
        return not any(one.failures for one in self.ran)


def document(report: Report) -> dict[str, Any]:
    """The campaign as plain values; `digest` of a suite is equal in two runs with the same seed that went to their end."""
    suites = [{**msgspec.to_builtins(one), "digest": f"{one.digest:016x}", "failures": one.failures,
               "passed": not one.failures} for one in report.ran]
    return {"asked": msgspec.to_builtins(report.asked), "made": msgspec.to_builtins(report.made),
            "seconds": round(report.seconds, 1), "passed": report.passed, "suites": suites}


def write_json(path: Path, report: Report) -> None:
    """Write the document."""
    path.write_bytes(msgspec.json.format(msgspec.json.encode(document(report)), indent=1) + b"\n")


def write_junit(path: Path, report: Report) -> None:
    """One test suite a suite, one test case a fault, and one for what the suite as a whole must reach."""
    root = ET.Element("testsuites", name="chaos")
    for one in report.ran:
        suite = ET.SubElement(root, "testsuite", name=one.suite, time=f"{one.seconds:.1f}")
        whole = ET.SubElement(suite, "testcase", classname=f"chaos.{one.suite}", name="the suite as a whole")
        if one.unavailable:
            ET.SubElement(whole, "skipped", message=one.unavailable)
        elif one.failures:
            ET.SubElement(whole, "failure", message="; ".join(one.failures))
        broken: dict[str, list[str]] = {}
        for finding in one.findings:
            told = (*finding.verdict.violations, f"at {finding.verdict.point}", report.command(finding))
            broken.setdefault(finding.verdict.point.fault, []).extend(filter(None, told))
        for fault in sorted(one.outcomes):
            case = ET.SubElement(suite, "testcase", classname=f"chaos.{one.suite}", name=fault)
            if fault in broken:
                ET.SubElement(case, "failure", message=_xml(broken[fault][0])).text = _xml("\n".join(broken[fault]))
        for fault, why in sorted(one.untried.items()):
            case = ET.SubElement(suite, "testcase", classname=f"chaos.{one.suite}", name=f"{fault} where it cannot be tried")
            ET.SubElement(case, "skipped", message="; ".join(why))
        suite.set("tests", str(len(suite)))
        suite.set("failures", str(len(suite.findall("testcase/failure"))))
        suite.set("skipped", str(len(suite.findall("testcase/skipped"))))
    ET.indent(root)
    ET.ElementTree(root).write(path, encoding="utf-8", xml_declaration=True)


def _xml(text: str) -> str:
    """The text without what XML cannot hold."""
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)


STYLE: Final = """
:root{color-scheme:light dark;--line:color-mix(in srgb,currentColor 22%,transparent);--bad:#c62828;--good:#2e7d32}
@media(prefers-color-scheme:dark){:root{--bad:#ff8a80;--good:#81c784}}
body{font:16px/1.45 system-ui,sans-serif;margin:0 auto;padding:1rem;max-width:70rem}
h1{font-size:1.4rem;margin:.2rem 0}h2{font-size:1.1rem;margin:1.6rem 0 .3rem}
p{margin:.3rem 0}.bad{color:var(--bad);font-weight:600}.good{color:var(--good);font-weight:600}
.wide{overflow-x:auto}table{border-collapse:separate;border-spacing:0;font-size:.9rem}
th,td{padding:.25rem .6rem;border-bottom:1px solid var(--line);text-align:right;vertical-align:bottom}
th:first-child,td:first-child{text-align:left;position:sticky;left:0;background:Canvas}
thead th{font-weight:600;max-width:9rem}code{font-size:.85rem;overflow-wrap:anywhere}
li{margin:.4rem 0}
"""


def write_html(path: Path, report: Report) -> None:
    """One page, without scripts, fonts or pictures from elsewhere."""
    asked, made, ran, seconds = report.asked, report.made, report.ran, report.seconds
    fired, broken = sum(one.fired for one in ran), sum(one.broken for one in ran)
    verdict = "<span class=good>passed</span>" if report.passed else "<span class=bad>failed</span>"
    body = "".join(_section(one, report) for one in ran)
    told = html.escape(f"{made.target}, plan {asked.plan}, seed {asked.seed}, resetguard {made.resetguard or 'from a checkout'}, "
                       f"LMDB binding {made.lmdb}, Python {made.python}")
    path.write_text(
        f"<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width,initial-scale=1'>"
        f"<title>chaos: {html.escape(made.target)}</title><style>{STYLE}</style><main><h1>Survival matrix: {verdict}</h1>"
        f"<p>{fired:,} faults in {seconds:.0f} s, {broken:,} broke a promise.</p><p>{told}</p>{body}</main></html>\n",
        encoding="utf-8")


def _section(one: Ran, report: Report) -> str:
    title = f"<h2 id='{html.escape(one.suite)}'>{html.escape(one.suite)}</h2>"
    if one.unavailable:
        return f"{title}<p class=bad>Not run: {html.escape(one.unavailable)}</p>"
    told = f"<p>{one.fired:,} faults, at least {one.floor:,} asked for, {one.broken:,} broke a promise, {one.seconds:.0f} s.</p>"
    untried = [f"not tried: {fault}: {'; '.join(why)}" for fault, why in sorted(one.untried.items())]
    failures = "".join(f"<p class=bad>{html.escape(failure)}</p>" for failure in (*one.failures, *untried))
    columns = sorted({outcome for outcomes in one.outcomes.values() for outcome in outcomes})
    head = "".join(f"<th scope=col>{html.escape(column)}</th>" for column in columns)
    rows = "".join(
        f"<tr><th scope=row>{html.escape(fault)}</th>" + "".join(f"<td>{outcomes[c]:,}</td>" if c in outcomes else "<td></td>"
                                                               for c in columns) + "</tr>"
        for fault, outcomes in sorted(one.outcomes.items()))
    table = (f"<div class=wide tabindex=0 role=region aria-label='{html.escape(one.suite)}'><table>"
             f"<thead><tr><th scope=col>fault</th>{head}</tr></thead><tbody>{rows}</tbody></table></div>") if rows else ""
    found = "".join(f"<li>{html.escape(str(f.verdict.point))}<br>" + "<br>".join(
        f"<code>{html.escape(v)}</code>" for v in filter(None, (*f.verdict.violations[:3], report.command(f))))
        for f in one.findings)
    return title + told + failures + table + (f"<ul>{found}</ul>" if found else "")
