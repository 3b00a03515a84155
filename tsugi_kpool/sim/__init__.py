"""A discrete-event simulator: a fleet in virtual time; core/'s own decisions, modelled replicas and links."""

from .checks import check_accounting, check_agreement, check_refusals, check_shared
from .churn import churn
from .faults import FaultyFleet, SimulatedFault
from .fleet import Fleet
from .report import SimulationReport
from .scenario import Far, HubCrash, LinkModel, Slow, Speeds
from .telling import Lie

__all__ = [
    "Far",
    "FaultyFleet",
    "Fleet",
    "HubCrash",
    "Lie",
    "LinkModel",
    "SimulatedFault",
    "SimulationReport",
    "Slow",
    "Speeds",
    "check_accounting",
    "check_agreement",
    "check_refusals",
    "check_shared",
    "churn",
]
