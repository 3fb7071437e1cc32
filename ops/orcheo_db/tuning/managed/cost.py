"""What a size costs a month at a service's list prices: an order of magnitude, of one region and one day."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from orcheo_db.tuning.managed.model import Fitted, Prices

HOURS = 730  # a month, as the clouds' own calculators have it


@dataclass(frozen=True)
class Cost:
    """US dollars a month: alone, and with a standby in another zone."""

    prices: Prices
    machine: Decimal
    storage: Decimal

    @property
    def alone(self) -> Decimal:
        return self.machine + self.storage

    @property
    def highly_available(self) -> Decimal:
        return self.alone * self.prices.standby

    def document(self) -> dict[str, Any]:
        return {
            "currency": "USD",
            "machine": float(self.machine),
            "storage": float(self.storage),
            "month": float(self.alone),
            "month_highly_available": float(self.highly_available),
            "region": self.prices.region,
            "date": self.prices.date,
            "source": self.prices.source,
            "formula": "730 h x machine + GB x storage; a standby multiplies both; backups beyond the free part and traffic are not in it",
        }

    def __str__(self) -> str:
        return (
            f"about {self.alone:.0f} US dollars a month, {self.highly_available:.0f} with a standby (730 h x machine + GB x storage; {self.prices.region},"
            f" prices of {self.prices.date}; without backups beyond the free part and traffic)"
        )


def monthly(fitted: Fitted) -> Cost:
    """The price of a size's machine and storage for a month."""
    prices = fitted.service.prices
    return Cost(prices, HOURS * fitted.machine.price, fitted.storage_gb * prices.storage)
