"""ImageService, as the proto has it."""

import asyncio
import contextlib
import tempfile
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import IO, Any, TypeVar

from agentruntime import errors, units
from agentruntime._proto.uapi.v1 import image_service_pb2 as pb
from agentruntime._proto.uapi.v1 import image_service_pb2_grpc
from agentruntime.signing import Signature
from grpc import aio

from agent_pool import messages
from agent_pool.images.catalog import Catalog, Say
from agent_pool.images.layout import StoredImage
from agent_pool.images.project import LARGEST_BYTES
from agent_pool.pool import Pool

Result = TypeVar("Result")
Context = aio.ServicerContext[Any, Any]
# A tar's headers and padding come on top of what is packed.
_LARGEST_TAR_BYTES = LARGEST_BYTES + 64 * 2**20
_IN_MEMORY_BYTES = 8 * 2**20


class ImageStoreService(image_service_pb2_grpc.ImageServiceServicer):
    """Over one catalog."""

    def __init__(self, pool: Pool, catalog: Catalog) -> None:
        self._pool = pool
        self._catalog = catalog

    async def BuildImage(
        self, request_iterator: AsyncIterator[pb.BuildImageRequest], context: Context
    ) -> AsyncIterator[pb.BuildImageResponse]:
        with tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY_BYTES) as archive:
            spec = await _receive(request_iterator, archive)
            archive.seek(0)
            async with _working(lambda say: self._build(archive, spec, say)) as (lines, work):
                async for line in lines:
                    yield pb.BuildImageResponse(progress=line)
                yield pb.BuildImageResponse(image=await work)

    async def ListImages(self, request: pb.ListImagesRequest, context: Context) -> pb.ListImagesResponse:
        made = await self._catalog.container_images()
        images = [self._described(each, made.get(each.digest, "")) for each in self._catalog.images()]
        return pb.ListImagesResponse(images=images)

    async def RemoveImage(self, request: pb.RemoveImageRequest, context: Context) -> pb.RemoveImageResponse:
        image = self._catalog.find(request.reference)
        for deployment in self._pool.deployments():
            # A built-in image stays, whether or not it runs; the catalog says so.
            if not image.built_in and not deployment.stopped and deployment.spec.image_digest == image.digest:
                raise errors.FailedPrecondition(
                    f"agent '{deployment.agent}' runs image '{image.reference}'; "
                    f"`agent stop {deployment.agent}` first"
                )
            kept = [spec.number for spec in deployment.revisions.values() if spec.image_digest == image.digest]
            if not image.built_in and not deployment.stopped and kept:
                raise errors.FailedPrecondition(
                    f"agent '{deployment.agent}' may be rolled back to image '{image.reference}', its revision "
                    f"{max(kept)}; `agent stop {deployment.agent}` first"
                )
        if not image.built_in and image.digest in self._pool.digests_in_use():
            raise errors.FailedPrecondition(f"image '{image.reference}' is being started; try again in a moment")
        await self._catalog.remove(request.reference)
        return pb.RemoveImageResponse()

    async def TagImage(self, request: pb.TagImageRequest, context: Context) -> pb.TagImageResponse:
        image = await self._catalog.tag(request.reference, request.new_reference)
        return pb.TagImageResponse(image=messages.image(image))

    async def PushImage(self, request: pb.PushImageRequest, context: Context) -> AsyncIterator[pb.PushImageResponse]:
        async with _working(lambda say: self._catalog.push(request.reference, request.destination, say)) as (
            lines,
            work,
        ):
            async for line in lines:
                yield pb.PushImageResponse(progress=line)
            yield pb.PushImageResponse(digest=await work)

    async def PullImage(self, request: pb.PullImageRequest, context: Context) -> AsyncIterator[pb.PullImageResponse]:
        async with _working(lambda say: self._catalog.pull(request.reference, say)) as (lines, work):
            async for line in lines:
                yield pb.PullImageResponse(progress=line)
            yield pb.PullImageResponse(image=messages.image(await work))

    async def ListSignatures(self, request: pb.ListSignaturesRequest, context: Context) -> pb.ListSignaturesResponse:
        image = self._catalog.find(request.reference)
        refusal = ""
        try:
            if not image.built_in:
                self._catalog.signed_by(request.reference, image.digest)
        except errors.FailedPrecondition as error:
            refusal = error.message
        signatures = [
            pb.Signature(payload=each.payload, value=each.value) for each in self._catalog.signatures(image.digest)
        ]
        return pb.ListSignaturesResponse(image=self._described(image), signatures=signatures, refusal=refusal)

    async def AddSignature(self, request: pb.AddSignatureRequest, context: Context) -> pb.AddSignatureResponse:
        signature = Signature(request.signature.payload, request.signature.value)
        await self._catalog.add_signature(request.reference, signature)
        return pb.AddSignatureResponse()

    async def GetDockerfile(self, request: pb.GetDockerfileRequest, context: Context) -> pb.GetDockerfileResponse:
        return pb.GetDockerfileResponse(dockerfile=await self._catalog.dockerfile(request.reference))

    def _described(self, image: StoredImage, container_image: str = "") -> pb.Image:
        """An image with what is known of its signatures."""
        message = messages.image(image, container_image)
        message.signatures = len(self._catalog.signatures(image.digest))
        if message.signatures:
            with contextlib.suppress(errors.FailedPrecondition):  # by no key, which is what "" says
                message.signed_by = self._catalog.signed_by(image.reference, image.digest)
        return message

    async def _build(self, archive: IO[bytes], spec: pb.BuildSpec, say: Say) -> pb.Image:
        if spec.container:
            await self._catalog.engine()  # before minutes go by
        image = await self._catalog.build(archive, spec.reference, say, keep_requirements=spec.keep_requirements)
        made = await self._catalog.make_container_image(image.reference, say) if spec.container else ""
        return messages.image(image, made)


@contextlib.asynccontextmanager
async def _working(
    do: Callable[[Say], Coroutine[Any, Any, Result]],
) -> AsyncIterator[tuple[AsyncIterator[str], asyncio.Task[Result]]]:
    """Does something long: what it says meanwhile, and then its result. It ends if nobody listens any more."""
    loop = asyncio.get_running_loop()
    said: asyncio.Queue[str | None] = asyncio.Queue()

    def say(line: str) -> None:
        loop.call_soon_threadsafe(said.put_nowait, line)

    async def lines() -> AsyncIterator[str]:
        while (line := await said.get()) is not None:
            yield line

    work = asyncio.create_task(do(say))
    work.add_done_callback(lambda _: said.put_nowait(None))
    try:
        yield lines(), work
    finally:
        work.cancel()
        await asyncio.wait([work])


async def _receive(requests: AsyncIterator[pb.BuildImageRequest], archive: IO[bytes]) -> pb.BuildSpec:
    """Takes in the tar; returns the spec.

    Raises:
        InvalidArgument: the spec does not come first.
        ResourceExhausted: the tar is too large.
    """
    spec: pb.BuildSpec | None = None
    received = 0
    async for request in requests:
        if request.WhichOneof("part") == "spec" and spec is None:
            spec = request.spec
            continue
        if request.WhichOneof("part") != "chunk" or spec is None:
            raise errors.InvalidArgument("a build begins with one spec, and then only pieces of a tar come")
        received += len(request.chunk)
        if received > _LARGEST_TAR_BYTES:
            raise errors.ResourceExhausted(f"the project is larger than {units.format_size(LARGEST_BYTES)}")
        archive.write(request.chunk)
    if spec is None:
        raise errors.InvalidArgument("a build begins with a spec")
    return spec
