"""The end-of-run report: what was found, what passed, what was not checked and why, and what measuring cost.

:func:`build_report` turns a run into a :class:`Report`; ``html``, ``terminal`` and :meth:`Report.to_dict` show the same report
to a browser, a terminal and a program. It reads the run log only, so a crashed run has its report too.
"""

from cockpit_lite.report.model import Check, Cost, Report, build_report

__all__ = ["Check", "Cost", "Report", "build_report"]
