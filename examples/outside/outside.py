"""An agent that the platform did not start: it serves gRPC by itself, and joins by registering.

Run it beside a platform (`agent up`), then: agent call outside-01 "hello". Ctrl-C ends it.
"""

import signal
import threading
from concurrent import futures

import grpc
from agentruntime import Client
from agentruntime._proto.uapi.v1 import text_generation_pb2 as pb
from agentruntime._proto.uapi.v1.text_generation_pb2_grpc import (
    TextGenerationServiceServicer,
    add_TextGenerationServiceServicer_to_server,
)
from grpc_health.v1 import health, health_pb2_grpc


class Shouter(TextGenerationServiceServicer):
    def GenerateText(self, request, context):
        return pb.GenerateTextResponse(text=request.prompt.upper(), confidence=1.0, tokens_used=1)

    def StreamText(self, request, context):
        for count, word in enumerate(request.prompt.split(), start=1):
            yield pb.StreamTextResponse(text=word.upper() + " ", confidence=1.0, tokens_used=count)


def main():
    server = grpc.server(futures.ThreadPoolExecutor(8))
    add_TextGenerationServiceServicer_to_server(Shouter(), server)
    # What the gateway asks; a plain HTTP address in `health_check` would do as well.
    health_pb2_grpc.add_HealthServicer_to_server(health.HealthServicer(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    ended = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ended.set())
    with Client() as uapi_client:
        registration_data = {
            "agent_id": "outside-01",
            "services": ["TextGenerationService"],
            "endpoint": f"localhost:{port}",
            "capabilities": ["text-generation"],
        }
        # The lease is renewed in the background until the client is closed.
        uapi_client.register_agent(registration_data)
        print(f"outside-01 serves on port {port}", flush=True)
        ended.wait()
        uapi_client.deregister_agent("outside-01")
    server.stop(grace=5).wait()


if __name__ == "__main__":
    main()
