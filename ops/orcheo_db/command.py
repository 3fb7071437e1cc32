"""What every command of `orcheo-db` shares: its context (spec, target, output) and the options that may stand after its name."""

from __future__ import annotations

import json
import os
from typing import Any

import click

from orcheo_db.app_lifecycle import ACCEPT_VARIABLE
from orcheo_db.console import out, say
from orcheo_db.errors import UserError
from orcheo_db.host import use_context
from orcheo_db.preflight import state_directory
from orcheo_db.secrets import Store
from orcheo_db.spec import Spec, load_spec
from orcheo_db.targets.base import Target
from orcheo_db.targets.compose import ROOT, ComposeTarget
from orcheo_db.targets.external import ExternalTarget
from orcheo_db.targets.host import HostTarget
from orcheo_db.targets.kubectl import Kubectl, current_context
from orcheo_db.targets.kubernetes import KubernetesTarget, size_of, state_name, take_secrets

INSTANCE_VARIABLE = "ORCHEO_DB_INSTANCE"  # the managed instance behind target external, as its cloud names it
# Chosen once, they hold until something else is chosen.
REMEMBERED = (
    "ORCHEO_DB_SIZE", "ORCHEO_DB_PORT", "ORCHEO_DB_WITH", "ORCHEO_DB_APP_PORT", "ORCHEO_DB_APP_STORAGE", ACCEPT_VARIABLE, INSTANCE_VARIABLE,
)  # fmt: skip
STACKS: dict[str, type[ComposeTarget]] = {"compose": ComposeTarget, "external": ExternalTarget}
TARGETS = (*STACKS, "kubernetes", "host")
NAMESPACE_VARIABLE, CONTEXT_VARIABLE = "ORCHEO_DB_NAMESPACE", "ORCHEO_DB_CONTEXT"
NAMESPACE = "orcheo"  # that of k8s/overlays
# What the commands of a stack of this machine's are called in a cluster.
ELSEWHERE = {
    "up": "kubectl apply -k k8s/",
    "down": "kubectl scale (k8s/README.md)",
    "destroy": "kubectl delete -k k8s/; volumes and Secrets stay (k8s/README.md)",
    "bootstrap": "kubectl delete job -l app.kubernetes.io/name=init, then kubectl apply -k k8s/",
    "images": "make k8s-images or make k8s-load",
}


class Context:
    """What every command needs: the spec, read when first asked for, and the target."""

    def __init__(self, target: str, size: str | None, as_json: bool) -> None:
        self.target_name, self.size_name, self.as_json = target, size, as_json
        self.namespace: str | None = None
        self.kube_context: str | None = None
        self.printed = False

    def spec(self) -> Spec:
        return load_spec(env=os.environ)

    def chosen(self) -> dict[str, str]:
        """What this command chooses against the spec: by option, environment or make variable."""
        given = {name: os.environ[name] for name in REMEMBERED if os.environ.get(name)}
        return given | ({"ORCHEO_DB_SIZE": self.size_name} if self.size_name else {})

    def target(self) -> Target:
        """The target, with what was chosen at an earlier `up` where nothing is chosen now."""
        if self.target_name == "host":
            return self.site()
        return self.cluster() if self.target_name == "kubernetes" else self.stack()

    def site(self) -> HostTarget:
        """The tier on hosts that Ansible runs, as the playbook has left it in the state directory.

        Raises:
            UserError: no playbook has run with it.
        """
        spec = self.spec()
        return HostTarget(spec, spec.size(self.size_name), Store(state_directory(ROOT, spec.stack.project)))

    def stack(self) -> ComposeTarget:
        """A stack on this machine, for what only such a one has.

        Raises:
            UserError: the target is another.
        """
        if self.target_name not in STACKS:
            command = click.get_current_context().info_name or "this"
            way = ELSEWHERE.get(command, "see k8s/README.md")
            if self.target_name == "host":
                way = "the playbooks do that (ansible/README.md)"
            raise UserError(f"`{command}` is not for target {self.target_name}: {way}")
        use_context()
        kind = STACKS[self.target_name]
        name = self.spec().stack.project
        store = Store(state_directory(ROOT, name if kind is ComposeTarget else f"{name}-{self.target_name}"))
        spec = load_spec(env={**os.environ, **store.choices(), **self.chosen()})
        return kind(spec, spec.size(None), store)

    def cluster(self) -> KubernetesTarget:
        """The tier in a cluster, with the secrets that its namespace has.

        Raises:
            UserError: there is no kubectl, no context, no installation. CheckFailed: the cluster does not answer, or refuses.
        """
        spec, context = self.spec(), self.kube_context or os.environ.get(CONTEXT_VARIABLE) or current_context()
        kubectl = Kubectl(self.namespace or os.environ.get(NAMESPACE_VARIABLE) or NAMESPACE, context)
        place = state_directory(ROOT, state_name(spec.stack.project, context, kubectl.namespace))
        store = Store(place, kubectl.namespace)
        for line in take_secrets(kubectl, store):
            say(line)
        return KubernetesTarget(spec, spec.size(self.size_name or size_of(kubectl)), store, kubectl)

    def print(self, document: Any, text: Any = None) -> None:
        """The result: as JSON, or for a person (rich renderables or text)."""
        self.printed = True
        if self.as_json:
            click.echo(json.dumps(document, indent=2, default=str))
        elif text is not None:
            out.print(text, markup=False)


running: list[Context] = []  # the running command's context, for an error's answer


class Command(click.Command):
    """A command that takes --json, --target and --size also after its name, as people type them."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        names = {name for parameter in self.params for name in parameter.opts}
        extra = [
            click.Option(["--json", "json_"], is_flag=True, help="Print one JSON document on stdout."),
            click.Option(["--target", "target_"], type=click.Choice(TARGETS), help="Where the tier runs."),
            click.Option(["--size", "size_"], metavar="SIZE", help="A size of ops/spec.toml."),
            click.Option(
                ["--namespace", "namespace_"], metavar="NAME", help=f"Target kubernetes. Default: {NAMESPACE}."
            ),
            click.Option(
                ["--context", "context_"], metavar="NAME", help="Target kubernetes. Default: the current one."
            ),
        ]
        self.params += [option for option in extra if not names & set(option.opts)]

    def invoke(self, ctx: click.Context) -> Any:
        context = ctx.find_object(Context)
        assert context is not None
        context.as_json = bool(ctx.params.pop("json_", False)) or context.as_json
        context.target_name = ctx.params.pop("target_", None) or context.target_name
        context.size_name = ctx.params.pop("size_", None) or context.size_name
        context.namespace = ctx.params.pop("namespace_", None) or context.namespace
        context.kube_context = ctx.params.pop("context_", None) or context.kube_context
        return super().invoke(ctx)


class Group(click.Group):
    command_class = Command


Group.group_class = Group
pass_context = click.make_pass_decorator(Context)
