"""The sound of a video in its annotated copy."""

import av
import numpy as np
import pytest
from conftest import VIDEO_SUFFIXES, slow_but
from samples import ffmpeg, needs_ffmpeg

from expressions.inference.recorder import Recorder
from expressions.inference.sources import Source

pytestmark = needs_ffmpeg
# codecs of pictures and sound in each kind of file; a tone begins together with the white frames, at 1 second
KINDS = {
    "mp4": ["libx264", "aac"],
    "ts": ["libx264", "aac"],
    "webm": ["libvpx", "libopus"],
    "mkv": ["mjpeg", "libvorbis"],
    "avi": ["mjpeg", "mp3"],
    "mov": ["mjpeg", "pcm_s16le"],
    "mpg": ["mpeg2video", "mp2"],
}


def write_flash(path, codecs, *options):
    """A video of two seconds, whose second one is white and loud."""
    ffmpeg(
        *("-f", "lavfi", "-i", "color=black:size=160x120:rate=25:duration=1,tpad=stop_duration=1:color=white"),
        *("-f", "lavfi", "-i", "sine=440:duration=2:sample_rate=44100", "-af", "volume=enable='lt(t,1)':volume=0"),
        *("-pix_fmt", "yuvj420p" if codecs[0] == "mjpeg" else "yuv420p", "-c:v", codecs[0], "-c:a", codecs[1]),
        *(*options, path),
    )
    return path


def save(path, saved):
    with Source(path) as source, Recorder(saved, source) as recorder:
        for frame in source:
            recorder.write(frame.image, frame.seconds)
    return recorder


def first_times(path):
    """When the first white frame, and the first loud sound of 5 ms, are; and the codec of the sound."""
    with av.open(str(path)) as video:
        white = next(frame.time for frame in video.decode(video=0) if frame.to_ndarray(format="gray").mean() > 128)
    with av.open(str(path)) as video:
        resampler = av.AudioResampler("flt", "mono", 48_000, frame_size=240)
        frames = (part for frame in video.decode(audio=0) for part in resampler.resample(frame))
        loud = next(frame.time for frame in frames if np.abs(frame.to_ndarray()).max() > 0.05)
        return white, loud, video.streams.audio[0].codec.canonical_name


CASES = [(kind, suffix) for kind in KINDS for suffix in VIDEO_SUFFIXES]


@pytest.mark.parametrize("kind, suffix", slow_but(CASES, ("mp4", ".mp4"), ("mpg", ".webm")))
def test_a_saved_video_has_the_sound_of_its_source_at_the_same_time(tmp_path, kind, suffix):
    source, saved = write_flash(tmp_path / f"in.{kind}", KINDS[kind]), tmp_path / f"out{suffix}"
    assert save(source, saved).lacking == ""
    white, loud, codec = first_times(saved)
    assert white == pytest.approx(1, abs=0.05) and loud == pytest.approx(white, abs=0.05)
    copied = {".mp4": {"mp4", "ts", "webm", "avi"}, ".webm": {"webm", "mkv"}, ".avi": {"avi", "mov"}}[suffix]
    other = {".mp4": "aac", ".webm": "opus", ".avi": "mp3"}[suffix]
    assert codec == (KINDS[kind][1].removeprefix("lib") if kind in copied else other)


def test_the_sound_ends_with_the_frames(tmp_path):
    path = write_flash(tmp_path / "in.mp4", KINDS["mp4"])
    with Source(path) as source, Recorder(tmp_path / "out.mp4", source) as recorder:
        for frame, _ in zip(source, range(25), strict=False):
            recorder.write(frame.image, frame.seconds)
    with av.open(str(tmp_path / "out.mp4")) as video:
        seconds = [float(stream.duration * stream.time_base) for stream in video.streams]
    assert seconds == pytest.approx([1, 1], abs=0.05)


@pytest.mark.faults
def test_a_broken_packet_of_sound_is_skipped(tmp_path):
    """Zeros in place of half a second, in which the tone begins."""
    path = write_flash(tmp_path / "in.mov", ["mjpeg", "ac3"])
    with av.open(str(path)) as video:
        broken = [
            (packet.pos, packet.size)
            for packet in video.demux(audio=0)
            if packet.dts and 0.5 < packet.pts * packet.time_base < 1.2
        ]
    with open(path, "r+b") as file:
        for position, size in broken:
            file.seek(position)
            file.write(bytes(size))
    assert "broken packets of sound" in save(path, tmp_path / "out.mp4").lacking
    with av.open(str(tmp_path / "out.mp4")) as video:
        loud = [frame.time for frame in video.decode(audio=0) if np.abs(frame.to_ndarray()).max() > 0.05]
    assert 1.15 < loud[1] < 1.3 and loud[-1] == pytest.approx(2, abs=0.05)  # loud[0] began before the gap


@pytest.mark.faults
@pytest.mark.parametrize("suffix", slow_but(VIDEO_SUFFIXES, ".mp4", ".avi"))  # .avi gets the packets as they are
def test_sound_goes_on_where_times_begin_anew_and_its_layout_changes(tmp_path, suffix):
    """As in files that were joined, and in recordings of television."""
    parts = [
        write_flash(tmp_path / f"{channels}.ts", ["libx264", "ac3"], "-ac", channels, "-ar", rate)
        for channels, rate in ((6, 48_000), (2, 44_100))
    ]
    joined, saved = tmp_path / "joined.ts", tmp_path / f"saved{suffix}"
    joined.write_bytes(b"".join(part.read_bytes() for part in parts))
    assert save(joined, saved).lacking == ""
    with av.open(str(saved)) as video:
        sound = [(frame.time, np.abs(frame.to_ndarray()).max() > 0.02) for frame in video.decode(audio=0)]
    times, loud = np.array([time for time, _ in sound]), np.array([loud for _, loud in sound])
    assert np.diff(times).max() < 0.1 and times[-1] == pytest.approx(4, abs=0.2)
    for begin, end, expected in ((0.1, 0.9, False), (1.1, 1.9, True), (2.2, 2.8, False), (3.2, 3.8, True)):
        assert (loud[(times > begin) & (times < end)] == expected).all(), begin


@pytest.mark.faults
def test_sound_of_an_unknown_codec_is_left_out_and_told(tmp_path):
    path = write_flash(tmp_path / "in.mkv", KINDS["mkv"])
    path.write_bytes(path.read_bytes().replace(b"A_VORBIS", b"A_UNKNOWN"[:8]))
    recorder = save(path, tmp_path / "out.mp4")
    assert recorder.frame_count == 50 and recorder.lacking == ", without sound from 0.0 s on (its codec is unknown)"


@pytest.mark.faults
def test_reading_sound_has_a_time_limit(tmp_path, monkeypatch):
    path = write_flash(tmp_path / "in.mp4", KINDS["mp4"])
    with Source(path) as source, Recorder(tmp_path / "out.mp4", source) as recorder:
        frames = list(source)
        monkeypatch.setattr("expressions.inference.video.FILE_TIMEOUT", -1)
        for frame in frames:
            recorder.write(frame.image, frame.seconds)
    assert recorder.frame_count == 50 and "without sound from 0.0 s on (Connection timed out)" in recorder.lacking
