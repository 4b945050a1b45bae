"""What is written for engines, Kubernetes and systemd is sound, and says nothing that the program does not know.

No engine and no cluster is asked; tests/e2e/test_image.py builds and runs the image.
"""

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from app import __version__
from app.cli import HEALTH_SECONDS
from app.mail.errors import ConfigError
from app.runtime import GRACE
from app.serving import SHUTDOWN_SECONDS
from app.settings import load

ROOT = Path(__file__).parents[2]
KUBERNETES = ROOT / "deploy" / "kubernetes"
UNIT = ROOT / "deploy" / "systemd" / "mailchute.service"
DRAIN = load({}, files=()).drain_delay + SHUTDOWN_SECONDS + GRACE  # seconds
KEY = "a-key-of-sixteen-characters-or-more"
EXPOSURE = 15  # tenths, of systemd's own score: 0 is walled in, 100 is open


def dockerfile() -> list[tuple[str, str]]:
    """Give its instructions: the word and what follows, continued lines joined."""
    text = re.sub(r"\\\n\s*", "", "".join(f"{line}\n" for line in (ROOT / "Dockerfile").read_text().splitlines()))
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return [(word, rest) for word, _, rest in (line.partition(" ") for line in lines)]


def manifest(name: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((KUBERNETES / f"{name}.yaml").read_text())
    return found


@pytest.fixture
def pod() -> dict[str, Any]:
    found: dict[str, Any] = manifest("deployment")["spec"]["template"]["spec"]
    return found


@pytest.fixture
def compose() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text())
    return found


def assert_settings(environ: dict[str, str], *, secrets: tuple[str, ...], folder: Path) -> None:
    """Every name is a setting, and together they start: the secrets' files are stood in for by one in `folder`."""
    secret = folder / "secret"
    secret.write_text(KEY)
    assert set(secrets) <= set(environ)
    load({**environ, **dict.fromkeys(secrets, str(secret))}, files=())


class TestDockerfile:
    def test_the_bases_are_one_tag_that_says_its_version(self) -> None:
        (base,) = {rest.split()[0] for word, rest in dockerfile() if word == "FROM"}
        assert re.fullmatch(r"python:3\.\d+-slim-[a-z]+", base)

    @pytest.mark.parametrize("word", ["RUN", "ENTRYPOINT", "CMD"])
    def test_no_command_goes_through_a_shell(self, word: str) -> None:
        """Process 1 must be ours, or the stop signal does not reach it; and a shell hides a failed step."""
        commands = [rest for said, rest in dockerfile() if said == word]
        assert commands
        assert all(rest.startswith('["') for rest in commands)

    def test_the_user_is_a_number_and_not_roots(self) -> None:
        ((_, user),) = [(word, rest) for word, rest in dockerfile() if word == "USER"]
        assert re.fullmatch(r"[1-9]\d{3,}:[1-9]\d{3,}", user)

    def test_it_needs_no_curl_and_takes_only_named_files(self) -> None:
        for word, rest in dockerfile():
            assert word != "ADD"
            assert not re.search(r"\b(curl|wget|apt-get|sudo|latest)\b", rest)
            if word == "COPY":
                assert not {".", "./"} & set(rest.split()[:-1])

    def test_what_it_copies_is_let_in_and_all_else_stays_out(self) -> None:
        first, *others = [
            line for line in (ROOT / ".dockerignore").read_text().splitlines() if not line.startswith("#")
        ]
        assert first == "*"
        let_in = {line.removeprefix("!") for line in others if line.startswith("!")}
        copied = {
            name.removeprefix("./").rstrip("/")
            for word, rest in dockerfile()
            if word == "COPY" and "--from" not in rest
            for name in rest.split()[:-1]
        }
        assert let_in == copied
        assert all((ROOT / name).exists() for name in copied)

    def test_the_health_check_says_why_before_the_engine_loses_patience(self) -> None:
        ((_, said),) = [(word, rest) for word, rest in dockerfile() if word == "HEALTHCHECK"]
        found = re.search(r"--timeout=(\d+)s", said)
        assert found
        assert int(found[1]) > HEALTH_SECONDS


class TestCompose:
    def test_its_settings_are_known_and_it_starts_with_a_relay(self, compose: dict[str, Any], tmp_path: Path) -> None:
        service = compose["services"]["mailchute"]
        environ = {"MAILCHUTE_LISTEN": "0.0.0.0:8587", "SMTP_HOST": "mail.example.org", **service["environment"]}
        assert_settings(environ, secrets=("MAILCHUTE_API_KEY_FILE",), folder=tmp_path)

    def test_it_is_walled_in_and_given_the_time_to_drain(self, compose: dict[str, Any]) -> None:
        service = compose["services"]["mailchute"]
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert service["restart"] == "unless-stopped"
        assert int(service["stop_grace_period"].removesuffix("s")) > DRAIN
        assert service["ports"] == ["127.0.0.1:8587:8587"]

    def test_what_it_names_is_there(self, compose: dict[str, Any]) -> None:
        service = compose["services"]["mailchute"]
        assert set(service["secrets"]) == set(compose["secrets"])
        mounted = dict(volume.split(":") for volume in service["volumes"])
        assert set(mounted) == set(compose["volumes"])
        assert list(mounted.values()) == [rest for word, rest in dockerfile() if word == "VOLUME"]
        assert service["image"] == f"mailchute:{__version__}"

    def test_its_secrets_cannot_be_committed_by_chance(self) -> None:
        ignored = (ROOT / ".gitignore").read_text().splitlines()
        assert {"/.env", "/secrets/"} <= set(ignored)


class TestKubernetes:
    def test_every_manifest_is_of_the_kustomization_but_the_secret(self) -> None:
        files = {path.name for path in KUBERNETES.glob("*.yaml")}
        assert files - {"kustomization.yaml", "secret.example.yaml"} == set(manifest("kustomization")["resources"])
        for name in files:
            said = manifest(name.removesuffix(".yaml"))
            assert {"apiVersion", "kind"} <= set(said)

    def test_one_process_at_a_time_opens_the_file(self) -> None:
        spec = manifest("deployment")["spec"]
        assert spec["replicas"] == 1
        assert spec["strategy"] == {"type": "Recreate"}
        assert manifest("volume")["spec"]["accessModes"] == ["ReadWriteOnce"]

    def test_the_selectors_find_the_pod(self) -> None:
        spec = manifest("deployment")["spec"]
        labels = spec["template"]["metadata"]["labels"]
        assert spec["selector"]["matchLabels"].items() <= labels.items()
        assert manifest("service")["spec"]["selector"].items() <= labels.items()

    def test_each_probe_asks_for_what_it_means(self, pod: dict[str, Any]) -> None:
        (container,) = pod["containers"]
        paths = {probe: container[f"{probe}Probe"]["httpGet"]["path"] for probe in ("startup", "liveness", "readiness")}
        assert paths == {"startup": "/livez", "liveness": "/livez", "readiness": "/readyz"}
        ports = {port["name"]: port["containerPort"] for port in container["ports"]}
        assert {container[f"{probe}Probe"]["httpGet"]["port"] for probe in paths} <= set(ports)
        assert [f"{port}" for port in ports.values()] == [rest for word, rest in dockerfile() if word == "EXPOSE"]
        (port,) = manifest("service")["spec"]["ports"]
        assert port["targetPort"] in ports

    def test_it_is_walled_in(self, pod: dict[str, Any]) -> None:
        (container,) = pod["containers"]
        user, group = next(rest for word, rest in dockerfile() if word == "USER").split(":")
        outer, inner = pod["securityContext"], container["securityContext"]
        assert outer["runAsNonRoot"] is True
        assert (outer["runAsUser"], outer["runAsGroup"], outer["fsGroup"]) == (int(user), int(group), int(group))
        assert outer["seccompProfile"] == {"type": "RuntimeDefault"}
        assert inner["readOnlyRootFilesystem"] is True
        assert inner["allowPrivilegeEscalation"] is False
        assert inner["capabilities"] == {"drop": ["ALL"]}
        assert pod["automountServiceAccountToken"] is False
        assert pod["enableServiceLinks"] is False
        assert {"requests", "limits"} <= set(container["resources"])

    def test_it_is_given_the_time_to_drain(self, pod: dict[str, Any]) -> None:
        assert pod["terminationGracePeriodSeconds"] > DRAIN

    def test_its_settings_are_known_and_it_starts(self, pod: dict[str, Any], tmp_path: Path) -> None:
        (container,) = pod["containers"]
        (made,) = manifest("kustomization")["configMapGenerator"]
        assert container["envFrom"] == [{"configMapRef": {"name": made["name"]}}]
        environ = dict(line.split("=", 1) for line in made["literals"])
        environ |= {variable["name"]: variable["value"] for variable in container["env"]}
        environ["MAILCHUTE_LISTEN"] = "0.0.0.0:8587"
        assert_settings(environ, secrets=("MAILCHUTE_API_KEY_FILE",), folder=tmp_path)

    def test_every_mount_has_its_volume_and_every_secret_its_file(self, pod: dict[str, Any]) -> None:
        (container,) = pod["containers"]
        mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        assert set(mounts) == set(volumes)
        assert volumes["mail"]["persistentVolumeClaim"]["claimName"] == manifest("volume")["metadata"]["name"]
        assert [mounts["mail"]] == [rest for word, rest in dockerfile() if word == "VOLUME"]
        example = manifest("secret.example")
        assert volumes["secrets"]["secret"]["secretName"] == example["metadata"]["name"]
        files = {f"{mounts['secrets']}/{name}" for name in example["stringData"]}
        assert {variable["value"] for variable in container["env"]} <= files

    def test_the_example_of_a_key_is_refused(self) -> None:
        key = manifest("secret.example")["stringData"]["api-key"]
        with pytest.raises(ConfigError, match="at least 16"):
            load({"MAILCHUTE_API_KEY": key, "SMTP_HOST": "mail.example.org"}, files=())

    def test_the_images_tag_is_this_version(self, pod: dict[str, Any]) -> None:
        assert pod["containers"][0]["image"] == f"mailchute:{__version__}"
        assert manifest("kustomization")["images"] == [{"name": "mailchute", "newTag": __version__}]


class TestSystemd:
    def said(self, name: str) -> list[str]:
        return re.findall(rf"^{name}=(.*)$", UNIT.read_text(), re.MULTILINE)

    def test_its_settings_are_known_and_it_starts_with_a_relay(self, tmp_path: Path) -> None:
        environ = dict(line.split("=", 1) for line in self.said("Environment"))
        assert environ.pop("SQLITE_TMPDIR") == environ["MAILCHUTE_DATABASE_URL"].rpartition("/")[0]
        environ["SMTP_HOST"] = "mail.example.org"
        assert_settings(environ, secrets=("MAILCHUTE_API_KEY_FILE",), folder=tmp_path)

    def test_every_secret_is_a_credential(self) -> None:
        text = UNIT.read_text()
        named = re.findall(r"^(#?)Environment=\w+_FILE=%d/(\S+)$", text, re.MULTILINE)
        loaded = re.findall(r"^(#?)LoadCredential=([^:]+):/etc/mailchute/\S+$", text, re.MULTILINE)
        assert named == loaded
        assert {name for _, name in named} == {"api-key", "smtp-password"}

    def test_it_is_given_the_time_to_drain_and_not_restarted_for_what_no_restart_mends(self) -> None:
        assert int(*self.said("TimeoutStopSec")) > DRAIN
        assert self.said("Restart") == ["on-failure"]
        assert self.said("RestartPreventExitStatus") == ["2"]

    @pytest.mark.parametrize(
        "command", [["verify"], ["security", "--offline=true", "--no-pager", f"--threshold={EXPOSURE}"]]
    )
    def test_systemd_finds_it_sound_and_walled_in(self, command: list[str], tmp_path: Path) -> None:
        program = shutil.which("systemd-analyze")
        if program is None:
            pytest.skip("systemd-analyze is not installed")
        unit = tmp_path / UNIT.name
        text = UNIT.read_text()
        assert "ExecStart=/opt/mailchute/bin/mailchute serve\n" in text
        unit.write_text(text.replace("/opt/mailchute/bin/mailchute", "/bin/true"))  # verify wants it to be there
        done = subprocess.run([program, *command, str(unit)], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "mailchute.service:" not in done.stderr
