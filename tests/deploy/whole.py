"""Whether compose.yaml is by the Compose specification, and whether the parts of the container and of kubernetes/ fit
each other."""

import tomllib
from fnmatch import fnmatch
from pathlib import Path

import compose_spec
import yaml

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"


def container():
    lines = [line.split() for line in (DEPLOY / "Containerfile").read_text().splitlines() if line]
    admitted = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    copied = [path for line in lines if line[0] == "COPY" and not line[1].startswith("--") for path in line[1:-1]]
    for path in copied:
        assert (ROOT / path).exists(), f"Containerfile: there is no {path}"
        assert any(fnmatch(path, pattern) for pattern in admitted), f".dockerignore keeps {path} away"
    image = next(line[1] for line in lines if line[0] == "FROM")
    rust = image.split(":")[1].split("-")[0]
    needed = tomllib.loads((ROOT / "Cargo.toml").read_text())["package"]["rust-version"]
    number = lambda version: [int(part) for part in version.split(".")]
    assert number(rust) >= number(needed), f"Containerfile: Rust {rust}, Cargo.toml needs {needed}"


def compose():
    text = (DEPLOY / "compose.yaml").read_text()
    whole = compose_spec.PyCompose.from_yaml(text)
    whole.validate()
    for name, service in yaml.safe_load(text)["services"].items():
        for needed, how in service.get("depends_on", {}).items():
            other = yaml.safe_load(text)["services"][needed]
            asked = "healthcheck" in other or "build" in other  # the image's own
            assert how["condition"] != "service_healthy" or asked, f"{name} waits for {needed}, which nobody asks"
        for volume in service.get("volumes", []):
            here = volume.split(":")[0]
            assert (DEPLOY / here).exists(), f"{name}: there is no {here}"


def kubernetes():
    folder = DEPLOY / "kubernetes"
    kustomization = yaml.safe_load((folder / "kustomization.yaml").read_text())
    files = {path.name for path in folder.iterdir()} - {"kustomization.yaml"}
    assert files == set(kustomization["resources"]), "kustomization.yaml names all files, and no others"

    parts = [yaml.safe_load((folder / name).read_text()) for name in kustomization["resources"]]
    by_kind = {part["kind"]: part for part in parts}
    deployment = by_kind["Deployment"]["spec"]
    pod = deployment["template"]["spec"]
    labels = deployment["template"]["metadata"]["labels"]
    container = pod["containers"][0]
    for selector in (
        deployment["selector"]["matchLabels"],
        by_kind["Service"]["spec"]["selector"],
        by_kind["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"],
        by_kind["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"],
        pod["topologySpreadConstraints"][0]["labelSelector"]["matchLabels"],
    ):
        assert selector == labels, f"{selector} are not the pod's {labels}"
    assert [image["name"] for image in kustomization["images"]] == [container["image"]]
    maps = [source["configMapRef"]["name"] for source in container["envFrom"]]
    assert maps == [generator["name"] for generator in kustomization["configMapGenerator"]]

    settings = dict(literal.split("=", 1) for literal in kustomization["configMapGenerator"][0]["literals"])
    listening = {int(settings[name].rsplit(":", 1)[1]) for name in ("RELAY_LISTEN", "RELAY_ADMIN_LISTEN")}
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert set(ports.values()) == listening
    assert {port["targetPort"] for port in by_kind["Service"]["spec"]["ports"]} <= set(ports)
    admitted = {port["port"] for rule in by_kind["NetworkPolicy"]["spec"]["ingress"] for port in rule["ports"]}
    assert admitted == listening
    for probe in ("livenessProbe", "readinessProbe"):
        assert container[probe]["httpGet"]["port"] in ports

    # five seconds for the goodbyes (STOP_WITHIN in relay/server.rs)
    aside = container["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert pod["terminationGracePeriodSeconds"] > aside + 5


container()
compose()
kubernetes()
