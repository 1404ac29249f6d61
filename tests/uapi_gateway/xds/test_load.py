"""Load reports."""

from envoy.service.load_stats.v3 import lrs_pb2

from uapi_gateway.xds.load import ClusterLoad, Load


def test_the_latest_report_counts_over_all_places() -> None:
    load = Load()
    request = lrs_pb2.LoadStatsRequest()
    stats = request.cluster_stats.add(cluster_name="agent/a")
    for in_flight in (2, 3):
        stats.upstream_locality_stats.add(
            total_requests_in_progress=in_flight,
            total_issued_requests=10,
            total_successful_requests=8,
            total_error_requests=1,
        )
    load.take(request, 5.0)
    assert load.clusters() == {"agent/a": ClusterLoad(in_flight=5, issued=20, succeeded=16, failed=2)}
    assert (load.in_flight("agent/a"), load.in_flight("agent/b"), load.at_s) == (5, 0, 5.0)
    load.take(lrs_pb2.LoadStatsRequest(), 6.0)
    assert load.in_flight("agent/a") == 0
