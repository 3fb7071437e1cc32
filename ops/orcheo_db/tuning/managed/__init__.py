"""A size's settings on managed PostgreSQL: RDS, Cloud SQL, Azure. Pure functions: no files, no network."""

from orcheo_db.tuning.managed.azure import AZURE
from orcheo_db.tuning.managed.cloudsql import CLOUDSQL
from orcheo_db.tuning.managed.cost import Cost, monthly
from orcheo_db.tuning.managed.fit import fit
from orcheo_db.tuning.managed.model import Fitted, Machine, Other, Parameter, Prices, Service
from orcheo_db.tuning.managed.rds import RDS

SERVICES = {service.key: service for service in (RDS, CLOUDSQL, AZURE)}

__all__ = [
    "AZURE",
    "CLOUDSQL",
    "RDS",
    "SERVICES",
    "Cost",
    "Fitted",
    "Machine",
    "Other",
    "Parameter",
    "Prices",
    "Service",
    "fit",
    "monthly",
]
