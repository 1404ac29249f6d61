import time

from agent_worker.vitals import Vitals


def test_a_report_has_what_the_health_document_shows() -> None:
    vitals = Vitals()
    vitals.requests_processed = 3
    report = vitals.report()
    assert report.status == "healthy"
    assert 0 <= report.uptime_seconds < 5
    assert report.requests_processed == 3
    assert report.memory_usage_bytes > 10**6


def test_cpu_is_counted_since_the_last_report() -> None:
    vitals = Vitals()
    end = time.process_time() + 0.1
    while time.process_time() < end:
        pass
    assert vitals.report().cpu_usage_percent > 20
    assert vitals.report().cpu_usage_percent >= 0


def test_uptime_counts_from_readiness() -> None:
    vitals = Vitals()
    before = vitals.report().uptime_seconds
    vitals.begin()
    assert vitals.report().uptime_seconds <= before + 1
