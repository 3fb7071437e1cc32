"""A size's settings as a managed service takes them: its units, its limits, without what it does not let one set."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from orcheo_db.spec import Size, Spec, SpecError
from orcheo_db.tuning import catalogue
from orcheo_db.tuning.managed.model import Fitted, Machine, Other, Parameter, Service
from orcheo_db.tuning.overrides import in_units
from orcheo_db.tuning.postgresql import postgresql_settings

STORAGE_GB = 100  # of a size whose storage is not said


def fit(service: Service, size: Size, spec: Spec) -> Fitted:
    """`size` on `service`: the machine, the parameters in its units, and what differs from the size.

    Raises:
        SpecError: a value that PostgreSQL would refuse, or no machine that is large enough.
    """
    parameters: list[Parameter] = []
    others: list[Other] = []
    settings = postgresql_settings(size, spec)
    found = machine(service, size)
    for setting in settings:
        for each in _one(service, found.memory, setting.name, setting.value, setting.reason):
            (parameters if isinstance(each, Parameter) else others).append(each)  # type: ignore[arg-type]
    parameters += [Parameter(name, value, restart, why) for name, (value, why, restart) in service.extra.items()]
    _make_room(service, parameters, others, {setting.name: setting.value for setting in settings})
    if service.extensions:
        names = ",".join(sorted(name.upper() for name in spec.database.extensions))
        parameters.append(Parameter(service.extensions, names, False, "the extensions that bootstrap makes"))
    storage = service.storage_gb.get(size.name, STORAGE_GB)
    return Fitted(service, found, storage, tuple(parameters), tuple(others))


def _make_room(service: Service, parameters: list[Parameter], others: list[Other], meant: dict[str, str]) -> None:
    """As many connections for us as on a server of one's own, where the service keeps more for itself than we do."""
    ours = int(meant["superuser_reserved_connections"]) + int(meant["reserved_connections"])
    more = service.reserved - ours
    if more <= 0:
        return
    at = next(number for number, each in enumerate(parameters) if each.setting == "max_connections")
    value = str(int(parameters[at].value) + more)
    why = f"{service.title} keeps {service.reserved} of them for itself, a server of one's own {ours}"
    others.insert(0, Other("max_connections", parameters[at].value, value, why))
    parameters[at] = replace(parameters[at], value=value, reason=why)


def machine(service: Service, size: Size) -> Machine:
    """The cheapest machine with at least the size's memory and CPUs.

    Raises:
        SpecError: there is none.
    """
    enough = [each for each in service.machines if each.memory >= size.memory and each.cpus >= size.cpus]
    if not enough:
        largest = max(service.machines, key=lambda each: (each.memory, each.cpus))
        raise SpecError(
            f"size {size.name}: {service.title} has no class with that memory and {size.cpus} CPUs in our list, whose largest is {largest.name};"
            " give instance_class to the module"
        )
    return min(enough, key=lambda each: (each.price, each.memory, each.name))


def _one(service: Service, memory: int, name: str, value: str, reason: str) -> Iterator[Parameter | Other]:
    if name in service.own:
        yield Other(name, value, None, service.own[name])
        return
    meant = value
    if name in service.instead:
        value, why = service.instead[name]
        yield Other(name, meant, value, why)
        reason = why
    converted = in_units(name, value)
    if name in service.limits:
        low, high = service.limits[name]
        number = float(converted)
        if not low <= number <= high:
            converted = f"{max(low, min(number, high)):.15g}"
            why = f"{service.title} takes {low:.15g} to {high:.15g} in units of {catalogue.NUMBERS[name][0] or 'one'}"
            yield Other(name, meant, converted, why)
    if name in service.shares:
        assert catalogue.NUMBERS[name][0] == "8kB", name
        most = int(memory * service.shares[name]) // 8192
        if int(converted) > most:
            converted = str(most)
            why = f"{service.title} takes at most {service.shares[name]:.0%} of the machine's memory"
            yield Other(name, meant, converted, why)
    if name in catalogue.BOOLEANS:
        converted = service.on_off[0 if converted in ("on", "true", "yes", "1") else 1]
    yield Parameter(
        service.renamed.get(name, name), converted, name in service.restart, reason, setting=name, meant=meant
    )
