"""Cameras and live streams: real servers on loopback, and a stand-in for a camera."""

import gc
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import weakref
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

import cv2
import numpy as np
import pytest
from conftest import ROOT, heed_ctrl_c, one_line, slow_but, write_video
from samples import ffmpeg, needs_ffmpeg

from expressions import UserError
from expressions.inference.recorder import Recorder
from expressions.inference.sources import Source

VIDEO_CAPTURE = cv2.VideoCapture
RATE = 30  # frames per second of the server


def numbered_image(count):
    """A frame that carries a number of 16 bits, each a block, black or white, which JPEG keeps."""
    image = np.full((96, 256, 3), 128, np.uint8)
    for bit in range(16):
        image[:48, bit * 16 : bit * 16 + 16] = 255 * (count >> bit & 1)
    return image


def number(image):
    return sum(int(image[24, bit * 16 + 8].mean() > 127) << bit for bit in range(16))


class Camera(ThreadingHTTPServer):
    """An MJPEG camera, what its /path names: its frames, numbered on through all connections, and when they left."""

    noise = np.random.default_rng(0).bytes(2**16)

    daemon_threads = True

    def __init__(self, files=None, tells_length=False):
        super().__init__(("127.0.0.1", 0), Answer)
        self.tells_length = tells_length
        self.sent, self.connections, self.files, self.over = [], 0, files, threading.Event()
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()

    def server_close(self):
        self.over.set()
        self.shutdown()
        super().server_close()

    def address(self, path):
        return f"http://anna:secret@127.0.0.1:{self.server_port}/{path}"


class Answer(BaseHTTPRequestHandler):
    def do_GET(self):
        camera, way = self.server, unquote(self.path).strip("/").split("?")[0]
        camera.connections += 1
        if camera.files:
            self.send_response(200)
            if camera.tells_length:
                self.send_header("Content-Length", str((camera.files / way).stat().st_size))
            self.end_headers()
            self.wfile.write((camera.files / way).read_bytes())
            return
        if way.startswith("mute") or (way == "stalls" and camera.connections > 1):
            camera.over.wait(60)
        if way.startswith("missing") or (way == "stops" and camera.connections > 1):
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
        self.end_headers()
        try:
            for index in range(10**9):
                if index == 15 and (way == "stalls" or (way == "hangs" and camera.connections == 1)):
                    camera.over.wait(60)
                if (index == 15 and way in ("stops", "returns", "returns larger")) or camera.over.wait(1 / RATE):
                    return
                later = camera.connections > 1
                noisy = {
                    "garbles": index >= 15 and not later,
                    "spoils": index >= 15 or later,
                    "bursts": 15 <= index < 25,
                }
                if noisy.get(way, way.startswith("garbage")):
                    self.wfile.write(camera.noise)
                    continue
                image = numbered_image(len(camera.sent))
                if (way == "grows" and index >= 15) or (way == "returns larger" and later):
                    image = cv2.resize(image, (512, 384), interpolation=cv2.INTER_NEAREST)
                data = cv2.imencode(".jpg", image)[1].tobytes()
                if way == "broken" and index % 10 == 9:
                    data = b"\xff\xd8" + bytes(len(data))
                camera.sent.append(time.perf_counter())
                self.wfile.write(b"--frame\r\nContent-Type: image/jpeg\r\n\r\n" + data + b"\r\n")
        except OSError:  # the client has left
            pass

    def log_message(self, *_):
        pass


@pytest.fixture
def camera():
    with Camera() as server:
        yield server


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr("expressions.inference.video.LOST_TIMEOUT", 0.7)
    monkeypatch.setattr("expressions.inference.video.STALL_TIMEOUT", 0.3)


def test_the_lag_of_a_slow_program_does_not_grow(camera):
    with Source(camera.address("steady")) as source:
        assert source.live and not source.camera and not source.is_image and source.fps is None
        ages, numbers = [], []
        for frame in source:
            ages.append(time.perf_counter() - camera.sent[number(frame.image)])
            numbers.append(number(frame.image))
            time.sleep(0.15)
            if frame.seconds > 1.6:
                break
    assert len(ages) == frame.number + 1 and 3 < len(ages) < 14
    assert np.median(ages[-5:]) < 0.6  # read one by one, the last ones were more than a second old
    assert numbers == sorted(set(numbers))
    assert source.reader.dropped == pytest.approx(numbers[-1] - numbers[0] + 1 - len(numbers), abs=1)


@pytest.mark.faults
def test_a_source_that_is_closed_leaves_no_frames_behind(camera):
    """Not until Python looks for circles, which it seldom does: a camera that is lost often would fill the memory."""
    gc.disable()
    try:
        with Source(camera.address("steady")) as source:
            for frame in source:
                if frame.number == 2:
                    break
        gone = weakref.ref(source)
        del source, frame
        assert gone() is None
    finally:
        gc.enable()


@pytest.mark.faults
def test_a_broken_frame_is_skipped_and_counted(camera):
    with Source(camera.address("broken")) as source:
        for frame in source:
            assert frame.image.shape == (96, 256, 3) and (frame.image[60:] > 100).all()
            if frame.number == 22:
                break
    assert 1 <= source.skipped <= 4 and camera.connections == 1


@pytest.mark.parametrize("way", slow_but(["returns", "hangs", "garbles", "bursts"], "returns"))
@pytest.mark.faults
def test_a_lost_stream_is_opened_again(camera, impatient, way):
    with Source(camera.address(way)) as source:
        numbers = [number(frame.image) for frame, _ in zip(source, range(25), strict=False)]
    assert (camera.connections >= 2 or way == "bursts") and numbers[-1] > 15
    assert numbers == sorted(set(numbers))


@pytest.mark.parametrize("way", ["grows", "returns%20larger"])
@pytest.mark.faults
@pytest.mark.slow
def test_a_stream_that_changes_its_size(camera, impatient, tmp_path, way):
    with Source(camera.address(way)) as source, Recorder(tmp_path / "out.avi", source) as recorder:
        frames = []
        for frame, _ in zip(source, range(25), strict=False):
            recorder.write(frame.image, frame.seconds)
            frames.append(frame)
    numbers = [number(cv2.resize(frame.image, (256, 96), interpolation=cv2.INTER_NEAREST)) for frame in frames]
    assert numbers == sorted(set(numbers)) and numbers[-1] > 15
    assert {frame.image.shape[:2] for frame in frames} == {(96, 256), (384, 512)}
    with Source(tmp_path / "out.avi") as video:
        assert {frame.image.shape for frame in video} == {(96, 256, 3)}


@pytest.mark.parametrize("way", slow_but(["stops", "stalls", "spoils"], "stalls"))
@pytest.mark.faults
def test_a_stream_that_stays_lost_is_one_clear_line(camera, impatient, way):
    with pytest.raises(UserError) as error, Source(camera.address(way)) as source:
        for frame in source:
            last, count = time.perf_counter(), frame.number
    assert count > 3 and 0.6 < time.perf_counter() - last < 4  # the program waits for 5 otherwise
    assert str(error.value) == (
        f"http://127.0.0.1:{camera.server_port}/{way}: lost, and not back in 0.7 seconds; "
        "look at the network and at the address"
    )


@pytest.mark.parametrize(
    "way",
    slow_but(["mute", "missing", "mute.mp4", "missing.mp4", "garbage", "garbage.mp4", "garbage.jpg"], "missing"),
)
@pytest.mark.faults
def test_a_stream_that_can_t_be_opened_is_one_clear_line(camera, impatient, way, capfd, monkeypatch):
    if way.startswith("missing"):  # that is known at once
        monkeypatch.setattr("expressions.inference.video.LOST_TIMEOUT", 30)
    began = time.perf_counter()
    with pytest.raises(UserError, match=f"^http://127.*/{way}: (can't be opened|not a.*); look at the network"):
        Source(camera.address(way))
    assert time.perf_counter() - began < 9  # the program waits for 10 otherwise
    assert capfd.readouterr().err == ""


@pytest.mark.faults
def test_nobody_at_the_address(impatient):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        with pytest.raises(UserError, match="can't be opened"):
            Source(f"rtsp://127.0.0.1:{unused.getsockname()[1]}/x")


@pytest.mark.slow
@pytest.mark.parametrize("way", ["stalls", "mute"])
@pytest.mark.faults
def test_ctrl_c_ends_a_program_whose_stream_stalls(camera, way):
    code = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from expressions.inference import video
from expressions.inference.sources import Source
video.LOST_TIMEOUT = video.STALL_TIMEOUT = 60  # much longer than the test waits
print("on", flush=True)
with Source({camera.address(way)!r}) as source:
    for frame in source:
        pass
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=heed_ctrl_c
    )
    process.stdout.readline()
    time.sleep(1)  # the stream has stalled by now, but isn't given up yet
    process.send_signal(signal.SIGINT)
    began = time.perf_counter()
    error = process.communicate(timeout=60)[1]
    assert time.perf_counter() - began < 15
    assert process.returncode == -signal.SIGINT and "KeyboardInterrupt" in error, (process.returncode, error)


def test_a_video_and_an_image_at_an_address_are_files(tmp_path):
    write_video(tmp_path / "video.avi", [numbered_image(count) for count in range(30)], 25)
    cv2.imwrite(
        str(tmp_path / "me.png"),
        np.dstack([numbered_image(77), np.repeat(np.uint8([[255], [0]]), 48, 0)[:, [0] * 256]]),
    )
    with Camera(files=tmp_path) as server:
        with Source(server.address("video.avi")) as source:
            assert not source.live and source.fps == 25
            assert [number(frame.image) for frame in source] == list(range(30))
        with Source(server.address("me.png?size=large")) as source:
            (frame,) = source
        assert source.is_image and number(frame.image) == 77 and (frame.image[48:] == 255).all()  # transparent there


@needs_ffmpeg
@pytest.mark.parametrize("way", ["clip.m3u8", "download?file=clip.ts"])
def test_what_has_a_length_is_a_video(tmp_path, way):
    """Whatever its address looks like: it ends, with every frame."""
    words = "-f", "lavfi", "-i", "testsrc=size=160x120:rate=25:duration=2", "-g", 25
    ffmpeg(*words, "-f", "hls", "-hls_time", 1, "-hls_playlist_type", "vod", tmp_path / "clip.m3u8")
    shutil.copy(tmp_path / "clip0.ts", tmp_path / "download")
    with Camera(tmp_path, tells_length=True) as server, Source(server.address(way)) as source:
        seconds = [frame.seconds for frame in source]
    assert not source.live and seconds == pytest.approx([index / 25 for index in range(50 if "m3u8" in way else 25)])


@needs_ffmpeg
@pytest.mark.faults
def test_a_recording_of_unknown_length_is_not_repeated(tmp_path, impatient):
    ffmpeg("-f", "lavfi", "-i", "testsrc=size=160x120:rate=25:duration=1", tmp_path / "clip.ts")
    lost = pytest.raises(UserError, match="lost, and not back")
    with lost, Camera(tmp_path) as server, Source(server.address("clip.ts")) as source:
        assert source.live
        for frame in source:
            assert frame.seconds < 1.5
    assert server.connections > 1 and frame.number + source.reader.dropped < 25


@needs_ffmpeg
@pytest.mark.faults
@pytest.mark.slow
def test_a_stream_may_be_entered_between_two_key_frames():
    """Until the next one it tells not even its size."""
    with socket.socket(type=socket.SOCK_DGRAM) as free:
        free.bind(("127.0.0.1", 0))
        address = f"udp://127.0.0.1:{free.getsockname()[1]}"
    words = "ffmpeg -v error -re -f lavfi -i testsrc=size=160x120:rate=25 -c:v libx264 -g 250 -tune zerolatency -t 14"
    with subprocess.Popen([*words.split(), "-f", "mpegts", address]) as caster:
        time.sleep(1.5)
        with Source(address) as source:
            assert source.live and next(iter(source)).image.shape == (120, 160, 3)
        caster.kill()


@needs_ffmpeg
@pytest.mark.faults
@pytest.mark.slow
def test_a_broadcast_in_parts_comes_at_its_own_pace(tmp_path, monkeypatch):
    """HLS: parts of two seconds come at once. When the server falls silent, the last ones aren't shown again."""
    monkeypatch.setattr("expressions.inference.video.PART_SECONDS", 4)
    monkeypatch.setattr("expressions.inference.video.LOST_TIMEOUT", 4)
    words = "ffmpeg -v error -re -f lavfi -i testsrc=size=160x120:rate=25:duration=16 -g 50 -f hls -hls_time 2"
    words += " -hls_list_size 4 -hls_flags omit_endlist"
    with subprocess.Popen([*words.split(), tmp_path / "live.m3u8"]) as caster, Camera(tmp_path) as server:
        arrived = []
        time.sleep(9)
        with (
            pytest.raises(UserError, match="lost, and not back in 4 seconds"),
            Source(server.address("live.m3u8")) as source,
        ):
            for frame in source:
                arrived.append((time.perf_counter(), frame.seconds))
        assert caster.wait() == 0
    del arrived[-4:]  # the last ones may come late: they were still in the decoder when the parts ended
    gaps = np.diff([seconds for _, seconds in arrived])
    assert len(arrived) > 200 and np.median(gaps) == pytest.approx(0.04, abs=0.01) and gaps.max() < 0.5
    lags = np.array([at - seconds for at, seconds in arrived])
    assert np.abs(lags - np.median(lags)).max() < 0.5


@pytest.mark.parametrize(
    "address",
    [
        "rtsp://admin:pa/ss@127.0.0.1:9/door",
        "http://127.0.0.1:9/video.cgi?user=admin&pwd=pa/ss",
        "rtp://a:pa?ss@127.0.0.1",
    ],
)
@pytest.mark.faults
def test_no_message_shows_a_password(address):
    with pytest.raises(UserError) as error:
        Source(address.replace("rtp:", "gopher:"))
    assert "ss" not in str(error.value).replace("address", "").replace("gopher", "") and "127.0.0.1" in str(error.value)


RTSP_SERVER = """
import gi
gi.require_version("Gst", "1.0")
gi.require_version("GstRtspServer", "1.0")
from gi.repository import GLib, Gst, GstRtspServer
Gst.init(None)
assert Gst.ElementFactory.find("rtpjpegpay")
server = GstRtspServer.RTSPServer(address="127.0.0.1", service="0")
factory = GstRtspServer.RTSPMediaFactory(shared=True)
factory.set_launch("( videotestsrc is-live=true pattern=red ! video/x-raw,format=I420,width=320,height=240,"
                   "framerate=25/1 ! jpegenc ! rtpjpegpay name=pay0 )")
server.get_mount_points().add_factory("/camera", factory)
server.attach(None)
print(server.get_bound_port(), flush=True)
GLib.MainLoop().run()
"""


@pytest.fixture
def rtsp_server():
    """GStreamer's RTSP server, run by Debian's Python: its packages are none for a virtual environment."""
    python = "/usr/bin/python3"
    needs = "needs Debian's packages python3-gi, gir1.2-gst-rtsp-server-1.0 and gstreamer1.0-plugins-good"
    if not os.path.exists(python):
        pytest.skip(needs)
    process = subprocess.Popen(
        [python, "-c", RTSP_SERVER], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    port = process.stdout.readline().strip()
    if not port:
        pytest.skip(needs)
    yield process, f"rtsp://127.0.0.1:{port}/camera"
    process.kill()
    process.communicate()


@pytest.mark.faults
@pytest.mark.slow
def test_an_rtsp_stream(rtsp_server, monkeypatch):
    process, address = rtsp_server
    with pytest.raises(UserError, match="lost, and not back"), Source(address) as source:
        monkeypatch.setattr("expressions.inference.video.LOST_TIMEOUT", 0.5)
        assert source.live
        for frame in source:
            if frame.number == 30:  # FFmpeg hands out at once what came while it looked at the stream
                began = frame.seconds
            if frame.number == 40:
                assert frame.seconds - began == pytest.approx(10 / 25, abs=0.3)
                process.kill()
    assert frame.number >= 40 and frame.image.shape == (240, 320, 3)
    blue, green, red = frame.image.mean(axis=(0, 1))
    assert blue < 30 and green < 30 and red > 220


class Capture:
    """Stands in for cv2.VideoCapture: each one that is opened is a camera with so many frames, then unplugged."""

    plugged, opened, settings = [], [], []

    def __new__(cls, source, *rest):
        return super().__new__(cls) if Path(str(source)).suffix == "" else VIDEO_CAPTURE(source, *rest)

    def __init__(self, index, interface=cv2.CAP_ANY):
        Capture.opened.append((index, interface))
        self.left = Capture.plugged.pop(0) if Capture.plugged else 0
        self.open = self.left > 0

    def isOpened(self):  # noqa: N802  OpenCV's name
        return self.open

    def get(self, key):
        return 0

    def set(self, key, value):
        Capture.settings.append((key, value))

    def read(self):
        time.sleep(0.1 if self.left > 0 else 0.3 if self.open else 0)  # the driver waits before it says no
        self.left -= 1
        return self.left >= 0, np.full((48, 64, 3), 50, np.uint8) if self.left >= 0 else None

    def release(self):
        pass


@pytest.fixture
def plugged(monkeypatch, impatient):
    Capture.plugged, Capture.opened, Capture.settings = [], [], []
    with monkeypatch.context() as patched:
        patched.setattr(cv2, "VideoCapture", Capture)
        yield Capture


@pytest.mark.parametrize(
    "system, interface", [("linux", cv2.CAP_V4L2), ("win32", cv2.CAP_DSHOW), ("darwin", cv2.CAP_AVFOUNDATION)]
)
def test_a_camera_is_opened_as_its_system_likes_it(plugged, monkeypatch, system, interface):
    monkeypatch.setattr("sys.platform", system)
    plugged.plugged = [3]
    with Source("1", size=(1280, 720)) as source:
        assert source.camera and source.live and source.fps is None
        next(iter(source))
    assert plugged.opened[0] == (1, interface)
    assert {(cv2.CAP_PROP_FRAME_WIDTH, 1280), (cv2.CAP_PROP_FRAME_HEIGHT, 720)} < set(plugged.settings)
    assert (cv2.CAP_PROP_BUFFERSIZE, 1) in plugged.settings
    plugged.opened, plugged.plugged = [], [0, 3]
    with Source("/dev/video5") as source:
        next(iter(source))
    assert plugged.opened[:2] == [("/dev/video5", interface), ("/dev/video5", cv2.CAP_ANY)]
    with pytest.raises(UserError, match="^camera 1: can't be opened; plug it in.*name another with --source$"):
        Source("1")


@pytest.mark.faults
@pytest.mark.slow
def test_a_camera_that_gives_no_frames_is_closed_again(plugged, monkeypatch):
    monkeypatch.setattr(plugged, "read", lambda self: (time.sleep(0.1), None))
    plugged.plugged = [1] * 100
    with pytest.raises(UserError, match="^camera 1: can't be opened"):
        Source("1")
    opened = len(plugged.opened)
    time.sleep(0.7)  # longer than STALL_TIMEOUT
    assert len(plugged.opened) == opened > 1


@pytest.mark.faults
@pytest.mark.slow
def test_an_unplugged_camera_is_opened_again_and_its_video_lasts_as_long_as_it_took(plugged, tmp_path, monkeypatch):
    monkeypatch.setattr("expressions.inference.video.LOST_TIMEOUT", 1)
    plugged.plugged = [5, 0, 0, 5]
    lost = pytest.raises(UserError, match="^camera 0: lost, and not back in 1 seconds")
    with lost, Source("0") as source, Recorder(tmp_path / "out.avi", source) as recorder:
        for frame in source:
            recorder.write(frame.image, frame.seconds)
    assert frame.number == 9 and source.skipped == 0
    with Source(tmp_path / "out.avi") as video:
        assert list(video)[-1].seconds == pytest.approx(frame.seconds, abs=0.1)
    assert frame.seconds > 1.1


@pytest.mark.faults
def test_what_was_seen_before_a_stream_was_lost_is_kept(detect, tmp_path, camera, monkeypatch):
    monkeypatch.setattr("expressions.inference.video.LOST_TIMEOUT", 0.7)
    monkeypatch.setattr("expressions.inference.video.STALL_TIMEOUT", 0.3)
    names = "out.mp4", "seen.csv", "timeline.png"
    save, table, timeline = (tmp_path / name for name in names)
    result = detect("--source", camera.address("stops"), "--save", save, "--csv", table, "--summary", timeline)
    assert one_line(result, "lost, and not back in 0.7 seconds") and "secret" not in "".join(result[1:])
    assert re.search(r"/stops: \d+ frames, 0 faces, .*saved to .*out.mp4", result[1])
    with Source(save) as video:
        assert len(list(video)) > 5
    assert sorted(os.listdir(tmp_path)) == sorted(names) and cv2.imread(str(timeline)) is not None
