"""JUnit: the report of a run as the XML that continuous integration shows as test results: a test case a fault."""

from __future__ import annotations

import re
from collections.abc import Collection
from xml.etree import ElementTree

from cockpit_lite.report.model import Report

#: What XML 1.0 cannot hold, not even escaped: names in a run may be anything.
_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def junit(report: Report, failing: Collection[str]) -> str:
    """Return the XML: findings of the failing severities fail, what was not checked is skipped with the reason.

    Args:
        report: The report.
        failing: Severities that fail.
    """
    suite = ElementTree.Element("testsuite", name=_clean(str(report.run.folder)))
    failures = 0
    for alert in report.findings:
        case = _case(suite, alert.code, alert.name)
        text = _clean(f"{alert.cause}\n{alert.advice}\nWhere: {', '.join(alert.where) or 'the whole run'}")
        if alert.severity in failing:
            failures += 1
            ElementTree.SubElement(case, "failure", type=alert.severity, message=_clean(str(alert))).text = text
        else:
            ElementTree.SubElement(case, "system-out").text = f"{alert.severity}: {text}"
    for check in report.not_checked:
        case = _case(suite, check.code, check.name)
        ElementTree.SubElement(case, "skipped", message=_clean(f"not checked, because {check.reason}"))
    for check in report.passed:
        _case(suite, check.code, check.name)
    tests = len(report.findings) + len(report.not_checked) + len(report.passed)
    suite.attrib.update(tests=str(tests), failures=str(failures), errors="0", skipped=str(len(report.not_checked)))
    suites = ElementTree.Element("testsuites")
    suites.append(suite)
    ElementTree.indent(suites)
    return ElementTree.tostring(suites, encoding="unicode", xml_declaration=False) + "\n"


def _case(suite: ElementTree.Element, code: str, name: str) -> ElementTree.Element:
    return ElementTree.SubElement(suite, "testcase", classname="cockpit-lite", name=_clean(f"{code} {name}"))


def _clean(text: str) -> str:
    return _NOT_XML.sub("\ufffd", text)
