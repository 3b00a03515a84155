"""A fleet in virtual time: the decisions of core/, with modelled replicas, links and gradients."""

from .checks import check_accounting, check_agreement
from .faults import Fault, FaultyFleet
from .fleet import Fleet
from .report import Report
from .scenario import HubCrash, Link, Slow, Speeds

__all__ = [
    "Fault",
    "FaultyFleet",
    "Fleet",
    "HubCrash",
    "Link",
    "Report",
    "Slow",
    "Speeds",
    "check_accounting",
    "check_agreement",
]
