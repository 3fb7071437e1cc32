"""Every overlay, rendered: strict schemas of several Kubernetes releases, and what the schemas can't know."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest

from orcheo_db.cluster import secrets
from orcheo_db.spec import load_spec
from orcheo_db.tuning import app_limits
from tests.conftest import ROOT
from tests.k8s.conftest import ADDED, OVERLAYS, kustomize, overlay_with
from tests.k8s.pods import quantity

Document = dict[str, Any]
RELEASES = ("1.30", "1.31", "1.32", "1.33", "1.34")
CUSTOM = ("cert-manager.io/", "monitoring.coreos.com/")  # their CRDs' schemas are not Kubernetes'
RECOMMENDED = ("name", "instance", "component", "part-of", "managed-by")


@pytest.fixture(scope="module", params=[*OVERLAYS, *ADDED])
def documents(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[Document]:
    name = request.param
    if name in OVERLAYS:
        return kustomize(ROOT / "k8s" / "overlays" / name)
    return kustomize(overlay_with(tmp_path_factory.mktemp(name), name))


def named(document: Document) -> str:
    return f"{document['kind']}/{document['metadata']['name']}"


def templates(documents: list[Document]) -> Iterator[tuple[str, Document]]:
    """Every pod template: what it is of, and the template."""
    for each in documents:
        spec = each.get("spec", {})
        spec = spec["jobTemplate"]["spec"] if each["kind"] == "CronJob" else spec
        if "template" in spec:
            yield named(each), spec["template"]


def containers(documents: list[Document]) -> Iterator[tuple[str, Document, bool]]:
    for name, template in templates(documents):
        for kind in ("initContainers", "containers"):
            for each in template["spec"].get(kind, ()):
                yield f"{name}/{each['name']}", each, kind == "initContainers"


@pytest.mark.parametrize("release", RELEASES)
def test_strict_schemas(documents: list[Document], release: str):
    for each in documents:
        if not each["apiVersion"].startswith(CUSTOM):
            kubernetes_validate.validate(each, release, strict=True)


def test_names_are_unique_and_in_one_namespace(documents: list[Document]):
    names = [named(each) for each in documents]
    assert len(names) == len(set(names))
    spaces = {each["metadata"].get("namespace") for each in documents if each["kind"] != "PriorityClass"}
    assert len(spaces) == 1 and spaces != {None}
    for each in documents:
        for subject in each.get("subjects", ()):
            assert subject["namespace"] in spaces, named(each)
    assert not [
        each for each in documents if each["kind"] in ("Namespace", "Secret", "ClusterRole", "ClusterRoleBinding")
    ]


def test_recommended_labels(documents: list[Document]):
    for each in documents:
        missing = [
            name for name in RECOMMENDED if f"app.kubernetes.io/{name}" not in each["metadata"].get("labels", {})
        ]
        plain = each["kind"] in ("ServiceAccount", "Role", "RoleBinding", "NetworkPolicy", "ConfigMap")
        assert not [name for name in missing if not plain or name not in ("name", "component")], named(each)


def test_pods_pass_pod_security_restricted(documents: list[Document]):
    for name, template in templates(documents):
        spec = template["spec"]
        assert spec["securityContext"]["runAsNonRoot"] and spec["securityContext"]["runAsUser"] > 0, name
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, name
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(spec), name
        kinds = {kind for volume in spec["volumes"] for kind in volume if kind != "name"}
        assert kinds <= {"configMap", "secret", "emptyDir", "persistentVolumeClaim", "ephemeral", "projected"}, name
        assert spec["enableServiceLinks"] is False, name
    for name, each, _ in containers(documents):
        context = each["securityContext"]
        assert context == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }, name


def test_images_have_the_specs_tags_and_are_not_pulled_again(documents: list[Document]):
    tags = set(load_spec(env={}).image_tags().values())
    for name, each, _ in containers(documents):
        assert each["image"] in tags and each["imagePullPolicy"] == "IfNotPresent", name


def test_limits_and_requests_everywhere(documents: list[Document]):
    for name, each, _ in containers(documents):
        for kind in ("requests", "limits"):
            assert set(each["resources"][kind]) == {"cpu", "memory"}, name
    for name, template in templates(documents):
        for volume in template["spec"]["volumes"]:
            assert "emptyDir" not in volume or volume["emptyDir"].get("sizeLimit"), f"{name}/{volume['name']}"


def test_probes_on_everything_that_serves(documents: list[Document]):
    jobs = {
        name
        for name, template in templates(documents)
        if template["spec"].get("restartPolicy") in ("OnFailure", "Never")
    }
    for name, each, init in containers(documents):
        if not init and name.rpartition("/")[0] not in jobs:
            assert {"startupProbe", "readinessProbe", "livenessProbe"} <= set(each), name


def test_the_default_fits_on_two_cpus(default: list[Document]):
    """All that runs at the same time, and a job, on a cluster whose own pods want half a CPU."""
    total = 0.0
    for name, template in templates(default):
        each = next(document for document in default if named(document) == name)
        if each["kind"] in ("Deployment", "StatefulSet") or name == "CronJob/drill":
            for container in template["spec"]["containers"]:
                text = container["resources"]["requests"]["cpu"]
                total += each["spec"].get("replicas", 1) * (
                    float(text[:-1]) / 1000 if text.endswith("m") else float(text)
                )
    assert total <= 1.0


def test_selectors_find_the_pods_they_mean(documents: list[Document]):
    labels = [template["metadata"]["labels"] for _, template in templates(documents)]

    def some(wanted: dict[str, str]) -> bool:
        return any(wanted.items() <= each.items() for each in labels)

    for each in documents:
        if each["kind"] == "Service":
            assert some(each["spec"]["selector"]), named(each)
            ports = {port["targetPort"] for port in each["spec"]["ports"]}
            meant = [
                {port["name"] for container in template["spec"]["containers"] for port in container.get("ports", ())}
                for _, template in templates(documents)
                if each["spec"]["selector"].items() <= template["metadata"]["labels"].items()
            ]
            assert all(ports <= names for names in meant), named(each)
        if each["kind"] in ("Deployment", "StatefulSet"):
            assert (
                each["spec"]["selector"]["matchLabels"].items()
                <= each["spec"]["template"]["metadata"]["labels"].items()
            )
        if each["kind"] == "PodDisruptionBudget":
            assert some(each["spec"]["selector"]["matchLabels"]), named(each)


def test_secrets_and_config_maps_that_are_named_are_made(documents: list[Document]):
    # The user's own, of those components, too.
    made = {secrets.PREFIX + name for name in secrets.SERVICES} | {"orcheo-db-external", "orcheo-db-bucket"}
    made |= {each["spec"]["secretName"] for each in documents if each["kind"] == "Certificate"}
    maps = {each["metadata"]["name"] for each in documents if each["kind"] == "ConfigMap"}
    accounts = {each["metadata"]["name"] for each in documents if each["kind"] == "ServiceAccount"}
    for name, template in templates(documents):
        assert template["spec"]["serviceAccountName"] in accounts, name
        for volume in template["spec"]["volumes"]:
            sources = volume.get("projected", {}).get("sources", [volume])
            for source in sources:
                if "secret" in source:
                    assert source["secret"].get("secretName", source["secret"].get("name")) in made, (
                        f"{name}/{volume['name']}"
                    )
                if "configMap" in source:
                    assert source["configMap"]["name"] in maps, f"{name}/{volume['name']}"


def test_the_secrets_jobs_role_is_what_it_needs_and_no_more(documents: list[Document]):
    roles = {each["metadata"]["name"]: each["rules"] for each in documents if each["kind"] == "Role"}
    wanted = sorted([secrets.INSTALLATION, *(secrets.PREFIX + name for name in secrets.SERVICES)])
    get, create = roles["orcheo-db-secrets"]
    assert get["verbs"] == ["get"] and sorted(get["resourceNames"]) == wanted
    assert create == {"apiGroups": [""], "resources": ["secrets"], "verbs": ["create"]}
    (results,) = roles["orcheo-db-jobs"]
    assert results["resourceNames"] == ["orcheo-db-results"] and sorted(results["verbs"]) == ["get", "patch"]
    tokens = {name for name, template in templates(documents) if template["spec"]["automountServiceAccountToken"]}
    jobs = {"CronJob/drill", *(f"CronJob/backup-{kind}" for kind in ("full", "differential", "incremental", "logical"))}
    jobs |= {"CronJob/drill-second", "CronJob/second-full", "CronJob/second-differential"}
    assert tokens - jobs == {"Job/secrets"}


def test_no_secret_is_committed_and_none_is_in_an_environment(documents: list[Document]):
    text = json.dumps(documents)
    assert not re.search(r"BEGIN [A-Z ]*PRIVATE KEY|SCRAM-SHA-256\$\d|cipher-pass=", text)
    for name, each, _ in containers(documents):
        assert all(set(variable) == {"name", "value"} for variable in each.get("env", ())), name
        assert "envFrom" not in each, name


def test_a_default_deny_and_only_the_labels_way_in(default: list[Document]):
    policies = {each["metadata"]["name"]: each["spec"] for each in default if each["kind"] == "NetworkPolicy"}
    assert policies["default-deny"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    (way,) = policies["pgbouncer"]["ingress"]
    (peer,) = way["from"]
    # An app's pod has this label and none else of ours.
    assert peer["podSelector"]["matchLabels"] == {"orcheo-db/client": "true"} and way["ports"][0]["port"] == 6432
    assert policies["client"]["podSelector"]["matchLabels"] == {"orcheo-db/client": "true"}
    reach = policies["postgres"]["ingress"][0]["from"][0]["podSelector"]["matchExpressions"][0]["values"]
    assert sorted(reach) == ["backup", "init", "jobs", "pgbouncer"]


@pytest.mark.parametrize("documents", ["app", "s3-backup"], indirect=True)
def test_limits_that_a_component_writes_are_the_specs(documents: list[Document]):
    spec = load_spec(env={})
    app = app_limits(spec)
    wanted = {
        "StatefulSet/backend/backend": app["BACKEND_MEMORY"],
        "Deployment/worker/worker": app["WORKER_MEMORY"],
        "Deployment/beat/beat": app["BEAT_MEMORY"],
        "StatefulSet/second/second": spec.backup.memory,
    }
    found = {name: each["resources"]["limits"]["memory"] for name, each, _ in containers(documents) if name in wanted}
    assert found and all(quantity(text) == wanted[name] for name, text in found.items()), found


@pytest.mark.parametrize("documents", ["s3-backup"], indirect=True)
def test_a_bucket_has_a_way_out_and_nobody_else(documents: list[Document]):
    policies = {each["metadata"]["name"]: each["spec"] for each in documents if each["kind"] == "NetworkPolicy"}
    assert policies["bucket"]["podSelector"]["matchLabels"] == {"orcheo-db/bucket": "true"}
    out = {name for name, spec in policies.items() for way in spec.get("egress", ()) if "to" not in way}
    assert out == {"dns", "api-server", "bucket"}
    labelled = {name for name, template in templates(documents) if "orcheo-db/bucket" in template["metadata"]["labels"]}
    assert labelled == {
        "StatefulSet/second",
        "CronJob/drill-second",
        "CronJob/second-full",
        "CronJob/second-differential",
    }
    # What the service and its jobs are given is put in place by the same words.
    scripts = {
        name: template["spec"]["initContainers"][0]["command"][2]
        for name, template in templates(documents)
        if name in labelled
    }
    assert len(set(scripts.values())) == 1 and "relay-key" in scripts["StatefulSet/second"]
    conf = [
        volume
        for name, template in templates(documents)
        if name in labelled
        for volume in template["spec"]["volumes"]
        if volume["name"] == "conf"
    ]
    assert len(conf) == 4 and all(each == conf[0] for each in conf)


def test_another_version_is_another_init_job(tmp_path: Path):
    """A Job can't be changed: the same apply after a version change makes a new one."""
    from orcheo_db.render import kubernetes  # noqa: PLC0415

    spec = load_spec(env={})
    other = spec.model_copy(update={"versions": spec.versions.model_copy(update={"orcheo": "9.9.9"})})
    names = {kubernetes.init_job(each, each.size())["metadata"]["name"] for each in (spec, other)}
    assert len(names) == 2
    sizes = {kubernetes.init_job(spec, size)["metadata"]["name"] for size in spec.sizes.values()}
    assert len(sizes) == 1


@pytest.mark.parametrize("documents", ["external-database"], indirect=True)
def test_an_external_servers_pooler_is_configured_by_its_init_container(documents: list[Document], tmp_path: Path):
    """The command itself, on files as the pod has them."""
    (deployment,) = [each for each in documents if each["kind"] == "Deployment"]
    (init,) = deployment["spec"]["template"]["spec"]["initContainers"]
    (conf,) = [each["data"] for each in documents if each["metadata"]["name"].startswith("orcheo-db-conf-pgbouncer-")]
    given = {
        "given": {"verifiers.txt": '"orcheo_app_a" "SCRAM"', "userlist.txt": '"pgbouncer" "x"', "server.key": "key"},
        "given-external": {"host": "db.example.com", "port": "5433", "server-ca.crt": "authority"},
        "given-conf": conf,
        "made": {},
        "run/orcheo-db/secrets": {},
    }
    for directory, files in given.items():
        (tmp_path / directory).mkdir(parents=True)
        for name, text in files.items():
            (tmp_path / directory / name).write_text(text)
    script = init["command"][2]
    for mount in init["volumeMounts"]:
        script = re.sub(rf"(?<![\w-]){re.escape(mount['mountPath'])}/", f"{tmp_path}{mount['mountPath']}/", script)
    script = script.replace(
        f"#server_tls_ca_file = {tmp_path}", "#server_tls_ca_file = "
    )  # a path inside the container
    done = subprocess.run(["sh", "-ec", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    made = (tmp_path / "made" / "pgbouncer.ini").read_text()
    assert "\norcheo = host=db.example.com port=5433 dbname=orcheo" in made and "host=postgres" not in made
    assert "\nserver_tls_ca_file = /run/orcheo-db/secrets/server-ca.crt\n" in made and not re.search(
        r"^auth_(query|user|dbname) ", made, re.M
    )
    assert (tmp_path / "run/orcheo-db/secrets/userlist.txt").read_text() == '"orcheo_app_a" "SCRAM"'
    (job,) = [each for each in documents if each["kind"] == "Job" and each["metadata"]["name"].startswith("init-")]
    environment = {each["name"]: each["value"] for each in job["spec"]["template"]["spec"]["containers"][0]["env"]}
    assert environment["ORCHEO_DB_ADMIN_DSN"] == "in-file" and environment["ORCHEO_DB_MANAGED"] == "0"
    kinds = {named(each) for each in documents}
    assert not {name for name in kinds if name.startswith(("StatefulSet/", "CronJob/"))}
