"""Agents whose workers use something, for the tests of `agent metrics` and `agent monitor`."""

from agentruntime._proto.uapi.v1 import agent_pool_pb2 as pool_pb2

MB = 10**6


def busy_worker(number: int, *, cpu_percent: float = 50.0, gpus: int = 0, network: bool = True) -> pool_pb2.Worker:
    """One worker with all figures that there are."""
    made = pool_pb2.Worker(
        worker_id=f"busy-{number:02}",
        agent="busy",
        state=pool_pb2.WORKER_STATE_READY,
        pid=1000 + number,
        restarts=number,
        lag_seconds=0.004,
        resources=pool_pb2.Resources(memory_limit_bytes=512 * MB, cpu_limit_millis=2000, pids_limit=256),
        usage=pool_pb2.Usage(
            cpu_percent=cpu_percent,
            cpu_seconds=12.5,
            memory_bytes=128 * MB,
            memory_peak_bytes=200 * MB,
            memory_pss_bytes=64 * MB,
            pids=7,
            throttled_periods=3,
            throttled_seconds=0.25,
            gpus=[
                pool_pb2.GpuUsage(index=index, utilization_percent=30 + index, memory_bytes=10**9)
                for index in range(gpus)
            ],
        ),
    )
    made.started_at.seconds = 1_700_000_000
    if network:
        usage = made.usage
        usage.network_received_bytes, usage.network_sent_bytes = 5 * MB, 2 * MB
        usage.network_received_rate, usage.network_sent_rate = 1500.0, 20.0
    return made


def busy_agent(*workers: pool_pb2.Worker) -> pool_pb2.Deployment:
    """The agent of such workers."""
    return pool_pb2.Deployment(agent="busy", image="busy:1", revision=1, workers=workers, calls_in_flight=4)
