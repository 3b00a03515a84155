"""A fleet in virtual time: the decisions of core/, with modelled replicas, links and gradients."""

from .checks import check_accounting, check_agreement, check_refusals
from .churn import churn
from .faults import Fault, FaultyFleet
from .fleet import Fleet
from .report import Report
from .scenario import Far, HubCrash, Link, Slow, Speeds

__all__ = [
    "Far",
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
    "check_refusals",
    "churn",
]
