"""Copy the sound of a video file into another one."""

from collections.abc import Iterator
from contextlib import ExitStack
from fractions import Fraction
from itertools import chain

import av

from expressions.inference.video import CONTAINERS, MAX_STREAMS, TimedFile

RATE, BIT_RATE = 48_000, 128_000  # samples and bits a second, of sound that is encoded anew


class Sound:
    """The sound of a video file, written into a container beside the frames.

    Packets are copied as they are, or decoded and encoded anew where their codec is none of `copied`.

    Args:
        path: The video file; None if there is none.
        output: Where to write; nothing may have been written there.
        copied: Codecs that `output` takes, by FFmpeg's names.
        encoder: For all other sound.
        start: When the output begins, in seconds from the first frame of the video.

    Attributes:
        seconds: How much was written.
        broken: How many packets could not be decoded.
        error: Why there is no sound, or no more of it; None if all is well, or if the video has none.
    """

    def __init__(
        self, path: str | None, output: av.container.OutputContainer, copied: set[str], encoder: str, start: float
    ):
        self.output, self.seconds, self.broken, self.error = output, 0.0, 0, None
        self.packet, self.packets, self.files = None, iter(()), ExitStack()
        if path:
            try:
                self._open(path, copied, encoder, start)
            except (av.FFmpegError, OSError) as error:
                self.error = error.strerror

    def _open(self, path, copied, encoder, start):
        file = self.files.enter_context(TimedFile(path))  # so that FFmpeg needs to open no file at all
        file.start()
        options = {"format_whitelist": CONTAINERS, "protocol_whitelist": "", "max_streams": str(MAX_STREAMS)}
        container = self.files.enter_context(av.open(file, container_options=options, metadata_errors="replace"))
        sound, frames = (container.streams.best(kind) for kind in ("audio", "video"))
        if not (sound and sound.codec_context):
            self.error = "its codec is unknown" if sound else None
            return
        for stream in container.streams:
            if stream != sound:
                stream.discard = av.stream.Discard.all
        origin = start + float((frames.start_time or 0) * frames.time_base)
        packets = _read(file, container.demux(sound))
        if sound.codec.canonical_name in copied:
            self.packets = _copy(packets, self.output.add_stream_from_template(sound), origin)
        else:
            layout = "mono" if sound.channels == 1 else "stereo"
            stream = self.output.add_stream(encoder, RATE, layout=layout, bit_rate=BIT_RATE)
            self.packets = self._encode(packets, stream, origin)

    def _encode(self, packets, stream, origin) -> Iterator[av.Packet]:
        """Encode what is heard from `origin` on, so that it begins at 0; where times begin anew, it goes on."""
        kind, end, layout = None, 0, stream.layout.name
        for frame in chain.from_iterable(map(self._decode, packets)):
            if frame.pts is not None and (end or frame.time >= origin):
                if kind != (kind := (frame.format.name, frame.layout.name, frame.sample_rate)):  # broadcasts change it
                    resampler = av.AudioResampler(stream.format, layout, RATE)
                frame.pts, frame.time_base = max(end, round((frame.time - origin) * RATE)), Fraction(1, RATE)
                end = frame.pts + frame.samples * RATE // frame.sample_rate
                # the encoder begins with a packet of silence before 0, for which FFmpeg would move the frames
                parts = chain.from_iterable(map(stream.encode, resampler.resample(frame)))
                yield from (packet for packet in parts if packet.pts >= 0)
        yield from stream.encode(None)

    def _decode(self, packet):
        try:
            return packet.decode()
        except av.FFmpegError:  # skipped, as a broken frame is
            self.broken += 1
            return []

    def write_until(self, seconds: float) -> None:
        """Write what is heard before a time of the output. Raises av.FFmpegError if it can't be written."""
        while True:
            try:
                self.packet = self.packet or next(self.packets, None)
            except (av.FFmpegError, OSError) as error:
                self.error = error.strerror
            if not self.packet or self.packet.pts * self.packet.time_base >= seconds:
                return
            self.seconds = float(self.packet.pts * self.packet.time_base)
            self.output.mux(self.packet)
            self.packet = None

    def close(self) -> None:
        """Close the video file."""
        self.files.close()


def _read(file, packets) -> Iterator[av.Packet]:
    """Yield packets of a file, with a time limit for each."""
    for packet in packets:
        yield packet
        file.start()


def _copy(packets, stream, origin) -> Iterator[av.Packet]:
    """Yield packets for `stream`, with times from `origin` on; where these begin anew, as in a joined file, go on."""
    end = 0
    for packet in packets:
        shift = round(origin / packet.time_base)
        if packet.dts is not None and (end or packet.dts >= shift):
            packet.dts = packet.pts = max(end, packet.dts - shift)
            end = packet.dts + max(1, (packet.duration or 0) - 1)  # a duration may be rounded up
            packet.stream = stream
            yield packet
