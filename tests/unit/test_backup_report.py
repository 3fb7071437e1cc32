"""What people and Prometheus are shown of the backups: complete, escaped, and right for any history."""

from __future__ import annotations

import datetime as dt
import http.client
import re
import socket
import xml.etree.ElementTree as ET
from html.parser import HTMLParser

import pytest

from orcheo_db.backup import chart, evidence, metrics, report
from orcheo_db.backup.plan import Entry
from orcheo_db.backup.record import file_name, moment
from orcheo_db.backup.running import Pulse

NOW = moment("2026-07-20T06:45:00Z")
EVIL = '<script>alert("x")</script>\n\x1b[2J\x1b]0;owned\x07 & \'"'
VOID = {"meta", "br", "hr", "link", "img", "input"}


def record(number=0, passed=True, **changes):
    start = dt.datetime(2026, 7, 20, 4, 15, tzinfo=dt.UTC) - dt.timedelta(days=number)
    made = {
        "format": "orcheo-db-drill/1",
        "id": f"{number:08x}",
        "kind": "restore",
        "started_at": f"{start:%Y-%m-%dT%H:%M:%SZ}",
        "finished_at": f"{start + dt.timedelta(minutes=10):%Y-%m-%dT%H:%M:%SZ}",
        "result": "pass" if passed else "fail",
        "failure": None if passed else "pgbackrest: ERROR: [039]: no WAL",
        "installation_id": "7a1c",
        "versions": {"postgresql": "17.6"},
        "backup": {"label": "20260701-011500F", "type": "full", "size": 5 << 30},
        "target": {"restore_point": "drill-1"},
        "rto_seconds": 250.0 if passed else None,
        "rpo_seconds": 0.42 if passed else None,
        "durations": {},
        "sizes": {"sample_bytes": 512 << 20, "sample_rows": 1234567},
        "checks": [{"name": "rows of orcheo.runs", "ok": passed, "found": 1234567}],
        "previous": None,
        "signature": "",
    }
    return made | changes


def history(count):
    return [record(number, passed=number % 7 != 3) for number in reversed(range(count))]


class Page(HTMLParser):
    """Tags and texts of a page; refuses tags that don't close."""

    def __init__(self, page):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data

    def count(self, tag, kind=None):
        return sum(name == tag and (kind is None or attrs.get("class") == kind) for name, attrs in self.tags)


@pytest.mark.parametrize("count", [0, 1, 2, 3, 8, 500])
def test_the_page_is_whole_for_any_number_of_drills(count):
    made = report.html(history(count), [], NOW)
    page = Page(made)
    failed = sum(number % 7 == 3 for number in range(count))
    assert page.count("tr") == count + (0 if count == 0 else 1 if count <= 50 else 2)
    assert page.count("circle", "pass") == 2 * (count - failed)
    assert page.count("path", "fail") == 2 * failed
    for drawn in re.findall(r"<svg.*?</svg>", made, re.DOTALL):
        tree = ET.fromstring(drawn)
        for circle in tree.iter("circle"):
            assert chart.LEFT <= float(circle.get("cx", "nan")) <= chart.WIDTH - chart.RIGHT
            assert chart.TOP - 1 <= float(circle.get("cy", "nan")) <= chart.HEIGHT - chart.BOTTOM
        texts = [each.text for each in tree.iter("text")]
        assert {"seconds", "minutes"} & set(texts)
        assert 2 <= sum(bool(re.search("Jul|20", text or "")) for text in texts) <= 9
    assert len(re.findall("<svg", made)) == (2 if count else 0)
    assert len(made) < 600_000


def test_the_page_fetches_nothing_and_runs_nothing():
    made = report.html(history(20), [], NOW)
    assert not re.search(r"https?:|src=|href=|@import|url\(|<script|<link|<iframe| on\w+=", made)


def test_a_page_without_drills_claims_nothing():
    text = Page(report.html([], [], NOW)).text
    assert "No drill has run yet." in text
    assert "intact" not in text
    assert "passed" not in text


def test_everything_in_the_page_is_escaped():
    evil = record(
        passed=False,
        failure=EVIL,
        kind=EVIL,
        installation_id=EVIL,
        versions={EVIL: EVIL},
        backup={"label": EVIL, "type": EVIL},
        target={"restore_point": EVIL},
        sizes={EVIL: 1, f"{EVIL}bytes": 2},
        checks=[{"name": EVIL, "ok": False, "found": {EVIL: [EVIL]}}, {"name": EVIL, "ok": False, "found": EVIL}],
    )
    made = report.html([evil, record()], [f"{file_name(evil)}: {EVIL}", f"{EVIL}: {EVIL}"], NOW)
    page = Page(made)
    assert page.count("script") == 0
    assert "<script>alert" in page.text  # as text, exactly


def test_the_exact_text_of_a_failure_and_of_a_records_problem_is_in_its_row():
    bad = record(1, passed=False, failure="line 1\n  line 2: a < b && c")
    page = Page(report.html([bad, record()], [f"{file_name(bad)}: its signature is wrong"], NOW))
    assert "line 1\n  line 2: a < b && c" in page.text
    assert page.text.count("its signature is wrong") == 2  # in the list and in the row
    assert "✕ broken" in page.text
    assert "1 problem(s)" in page.text


def test_pass_and_fail_differ_by_sign_and_word_and_not_only_by_colour():
    page = Page(report.html(history(8), None, NOW))
    assert "✓ pass" in page.text
    assert "✕ fail" in page.text
    assert "not verified" in page.text


def _luminance(colour):
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_colours_have_the_contrast_of_wcag_aa_in_both_schemes():
    for block in re.findall(r":root \{([^}]*)\}", report.CSS):
        colours = dict(re.findall(r"--([a-z-]+): (#[0-9a-f]+)", block))
        full = {name: c if len(c) == 7 else "#" + "".join(2 * each for each in c[1:]) for name, c in colours.items()}
        for name, back in (
            ("text", "card"),
            ("muted", "card"),
            ("muted", "page"),
            ("pass", "card"),
            ("fail", "card"),
            ("pass", "pass-back"),
            ("fail", "fail-back"),
        ):
            light, dark = sorted((_luminance(full[name]), _luminance(full[back])), reverse=True)
            assert (light + 0.05) / (dark + 0.05) >= 4.5, (name, back)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "unknown"),
        (0, "0.0 s"),
        (0.42, "0.4 s"),
        (59.7, "1 min"),
        (250, "4 min 10 s"),
        (3600, "1 h"),
        (7500, "2 h 5 min"),
        (273600, "3 d 4 h"),
    ],
)
def test_durations(seconds, text):
    assert report.duration(seconds) == text


@pytest.mark.parametrize(("most", "last"), [(0, 1), (0.42, 0.6), (1, 1), (7.3, 8), (100, 100), (8640, 10000)])
def test_axes_end_at_or_above_the_greatest_value_in_round_steps(most, last):
    found = chart.steps(most)
    assert found[0] == 0
    assert found[-1] == pytest.approx(last)
    assert 2 <= len(found) <= 7


@pytest.mark.parametrize("days", [0.5, 1, 2, 10, 30, 119, 121, 400, 1000, 4000])
def test_dates_are_few_distinct_and_within(days):
    first = moment("2026-07-01T04:15:00Z")
    found = chart.dates(first, first + days * 86400)
    assert 2 <= len(found) <= 8
    assert len({text for _, text in found}) == len(found)
    assert all(first <= at <= first + days * 86400 for at, _ in found)


def test_the_terminal_report_says_what_was_proven():
    text = report.text(history(5), [], NOW)
    for part in (
        "PASS",
        "2026-07-20 04:15 UTC",
        "2 h 20 min ago",
        "4 min 10 s",
        "0.4 s",
        "1 of 1 checks ok",
        "sample 512 MB",
        "sample rows 1,234,567",
    ):
        assert part in text
    for part in (
        "postgresql 17.6",
        "4 of 5 passed",
        "5 record(s), all signed and chained",
        "20260701-011500F (full, 5120 MB) to drill-1",
    ):
        assert part in text


def test_the_terminal_report_of_a_failure_and_of_no_drill():
    text = report.text([record(passed=False)], ["a.json: is no JSON"], NOW)
    for part in (
        "FAIL",
        "pgbackrest: ERROR: [039]: no WAL",
        "last success never",
        "1 problem(s)",
        "a.json: is no JSON",
        "RTO        unknown",
    ):
        assert part in text
    assert report.text([], [], NOW) == "No drill has run yet.\n"
    assert "chain.json: was edited" in report.text([], ["chain.json: was edited"], NOW)


def test_no_record_speaks_to_the_terminal():
    evil = record(passed=False, failure=EVIL, kind=EVIL, checks=[{"name": EVIL, "ok": False, "found": EVIL}])
    text = report.text([evil], [f"x.json: {EVIL}"], NOW)
    assert "\x1b" not in text
    assert "\x07" not in text
    assert r"\x1b[2J" in text


STATE = {
    "full": Entry(known_since=NOW - 9e5, last_success=NOW - 90.5, last_duration=12.25, failures_total=2),
    "incremental": Entry(known_since=NOW - 600, running=True),
    "drill": Entry(known_since=NOW - 9e5, failures_total=7),
}


def samples(text):
    """name{labels} -> value, refusing what Prometheus would: no HELP and TYPE before, a family twice, a line that is no sample."""
    found, seen = {}, set()
    lines = text.splitlines()
    assert text.endswith("\n")
    for number, line in enumerate(lines):
        if line.startswith("# HELP "):
            name = line.split()[2]
            assert name not in seen
            seen.add(name)
            assert re.fullmatch(rf"# TYPE {name} (gauge|counter)", lines[number + 1])
        elif not line.startswith("#"):
            match = re.fullmatch(r'([a-z_]+)((?:\{[a-z]+="(?:[^"\\\n]|\\["\\n])*"\})?) (\S+)', line)
            assert match
            assert match[1] in seen
            found[match[1] + match[2]] = float(match[3])
    return found


def test_metrics_tell_each_job_and_the_drills():
    found = samples(metrics.metrics(STATE, history(5), [], NOW, {"count": 4, "repository_bytes": 2.5e9}, Pulse()))
    assert found['orcheo_db_backup_last_success_timestamp_seconds{job="full"}'] == NOW - 90.5
    assert 'orcheo_db_backup_last_success_timestamp_seconds{job="incremental"}' not in found
    assert found['orcheo_db_backup_age_seconds{job="full"}'] == 90.5
    assert found['orcheo_db_backup_age_seconds{job="incremental"}'] == 600
    assert found["orcheo_db_backup_newest_age_seconds"] == 90.5
    assert found['orcheo_db_backup_failures_total{job="full"}'] == 2
    assert found['orcheo_db_backup_last_duration_seconds{job="full"}'] == 12.25
    assert (found['orcheo_db_backup_running{job="full"}'], found['orcheo_db_backup_running{job="incremental"}']) == (
        0,
        1,
    )
    assert found["orcheo_db_drill_last_success_timestamp_seconds"] == moment("2026-07-20T04:25:00Z")
    assert found["orcheo_db_drill_age_seconds"] == 8400
    assert (found["orcheo_db_drill_rto_seconds"], found["orcheo_db_drill_rpo_seconds"]) == (250, 0.42)
    assert found["orcheo_db_drill_failures_total"] == 7
    assert (found["orcheo_db_backup_count"], found["orcheo_db_backup_repository_bytes"]) == (4, 2.5e9)
    assert (found["orcheo_db_evidence_chain_ok"], found["orcheo_db_backup_scheduler_ok"]) == (1, 1)


def test_metrics_of_an_installation_without_a_past():
    assert samples(metrics.metrics({}, [], [], NOW))["orcheo_db_evidence_chain_ok"] == 1
    found = samples(metrics.metrics({"drill": Entry(known_since=NOW - 60)}, [record(passed=False)], ["a.json: x"], NOW))
    assert found["orcheo_db_drill_age_seconds"] == 60
    assert "orcheo_db_drill_last_success_timestamp_seconds" not in found
    assert "orcheo_db_drill_rto_seconds" not in found
    assert found["orcheo_db_evidence_chain_ok"] == 0


def test_metrics_escape_labels_and_help():
    text = metrics.family(
        "a_b", "gauge", "c:\\d\ne", [({"job": 'q"\\\n'}, 1.5), ({}, float("inf")), ({}, float("nan"))]
    )
    assert text == '# HELP a_b c:\\\\d\\ne\n# TYPE a_b gauge\na_b{job="q\\"\\\\\\n"} 1.5\na_b +Inf\na_b NaN\n'


class Ticking:
    now = 1000.0

    def __call__(self):
        return self.now


def test_the_pulse_is_bad_when_the_loop_has_not_looked_or_has_a_problem_but_not_during_a_long_job():
    clock = Ticking()
    pulse = Pulse(clock)
    assert metrics.unhealthy(pulse) is None
    clock.now += metrics.STALE + 1
    assert "not been looked at for 121 s" in str(metrics.unhealthy(pulse))
    pulse.job = "full"
    assert metrics.unhealthy(pulse) is None
    pulse.job = None
    pulse.beat()
    assert metrics.unhealthy(pulse) is None
    pulse.problem = "no space"
    assert metrics.unhealthy(pulse) == "no space"


@pytest.fixture
def site(tmp_path):
    """The pages of a real evidence directory; `state` may be made to fail."""
    key = evidence.generate_key()
    plain = {name: value for name, value in record().items() if name not in ("format", "previous", "signature")}
    evidence.append(tmp_path, plain, key)
    clock = Ticking()
    world = {"pulse": Pulse(clock), "clock": clock, "fail": None, "directory": tmp_path}

    def state():
        if world["fail"]:
            raise world["fail"]
        return STATE

    proofs = metrics.Evidence(tmp_path, evidence.public_key(key))
    server = metrics.serve("127.0.0.1", 0, metrics.pages(state, proofs.read, world["pulse"], lambda: NOW))

    def get(path, method="GET"):
        connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=10)
        connection.request(method, path)
        answer = connection.getresponse()
        return answer, answer.read().decode()

    world["get"], world["server"] = get, server
    yield world
    server.shutdown()
    server.server_close()


def test_the_pages_are_served(site):
    answer, body = site["get"]("/metrics?x=1")
    assert (answer.status, answer.headers["Content-Type"]) == (200, "text/plain; version=0.0.4; charset=utf-8")
    assert samples(body)["orcheo_db_evidence_chain_ok"] == 1
    answer, body = site["get"]("/drill")
    assert answer.status == 200
    assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
    assert "✓ passed" in Page(body).text
    answer, body = site["get"]("/drill", "HEAD")
    assert (answer.status, body) == (200, "")
    assert site["get"]("/../etc/passwd")[0].status == 404
    assert site["get"]("/metrics", "POST")[0].status == 501


def test_an_edited_record_shows_at_the_next_scrape(site):
    site["get"]("/metrics")
    path = next(site["directory"].glob("2*.json"))
    path.write_text(path.read_text().replace("250.0", "1.0"))
    assert samples(site["get"]("/metrics")[1])["orcheo_db_evidence_chain_ok"] == 0
    assert "its signature is wrong" in site["get"]("/drill")[1]


def test_healthz_follows_the_loop(site):
    answer, body = site["get"]("/healthz")
    assert (answer.status, body) == (200, "ok\n")
    site["clock"].now += metrics.STALE + 1
    answer, body = site["get"]("/healthz")
    assert (answer.status, "not been looked at" in body) == (503, True)


def test_a_client_never_sees_why_a_page_failed_and_the_log_does(site, capfd):
    site["fail"] = ValueError("secret /path")
    answer, body = site["get"]("/metrics")
    assert (answer.status, body) == (500, "internal error; see the service's log\n")
    with socket.create_connection(("127.0.0.1", site["server"].server_port), timeout=5) as client:
        client.sendall(b"\x16\x03\x01 nonsense\r\n\r\n")
        assert b"Traceback" not in client.recv(4096)
    with socket.create_connection(("127.0.0.1", site["server"].server_port), timeout=5):
        pass  # goes away without a word
    site["fail"] = None
    assert site["get"]("/metrics")[0].status == 200
    err = capfd.readouterr().err
    assert "'/metrics' failed: ValueError: secret /path" in err
    assert "Traceback" not in err
