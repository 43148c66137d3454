"""Videos read by PyAV: what their headers say, right or wrong, and what they may not do."""

import errno
import os
import re
import shutil
import struct
import subprocess
import sys
import threading
import time
from fractions import Fraction
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import av
import cv2
import numpy as np
import pytest
from conftest import ENVIRONMENT, ROOT, write_video
from samples import ffmpeg, gray, needs_ffmpeg, record_video

from expressions import UserError
from expressions.inference import video
from expressions.inference.sources import Source

SCENE = "testsrc=size=320x240:rate=25:duration=2"


def read(path):
    with Source(path) as source:
        return list(source), source


@pytest.mark.faults
def test_pixels_that_can_not_be_converted_are_an_error_of_their_video(tmp_path, monkeypatch):
    """As FFmpeg says it of some rare formats of pixels."""
    path, images = record_video(tmp_path / "video.avi"), []

    def image(reader, frame):
        images.append(frame)
        if len(images) > 1:
            raise OSError(errno.EOPNOTSUPP, "Operation not supported")
        return np.zeros((8, 8, 3), np.uint8)

    monkeypatch.setattr(video.Video, "image", image)
    with pytest.raises(UserError, match=r"video.avi: Operation not supported$"):
        read(path)


@needs_ffmpeg
@pytest.mark.faults
def test_a_tag_with_nonsense_for_a_duration(tmp_path):
    """Too large a number for float."""
    path = tmp_path / "video.mkv"
    ffmpeg("-f", "lavfi", "-i", SCENE, "-metadata:s:v", f"XURATION={'9' * 400}:00:00.0", path)
    path.write_bytes(path.read_bytes().replace(b"DURATION", b"NONSENSE").replace(b"XURATION", b"DURATION"))
    assert len(read(path)[0]) == 50


@needs_ffmpeg
@pytest.mark.parametrize(
    "suffix, codec", [("mkv", "libx264 -x264-params interlaced=1"), ("vob", "mpeg2video -flags +ildct+ilme")]
)
def test_interlaced_video_is_seen(tmp_path, suffix, codec):
    """OpenCV gave black frames, or whatever lay in memory."""
    ffmpeg("-f", "lavfi", "-i", SCENE, "-t", 0.4, tmp_path / "%d.png")
    ffmpeg("-f", "lavfi", "-i", SCENE, "-t", 0.4, "-c:v", *codec.split(), "-qscale", 2, tmp_path / f"video.{suffix}")
    frames, _ = read(tmp_path / f"video.{suffix}")
    assert len(frames) == 10
    difference = np.abs(frames[5].image.astype(int) - cv2.imread(str(tmp_path / "6.png")))
    assert difference.mean() < 12


@needs_ffmpeg
@pytest.mark.parametrize(
    "aspect, shape", [("4/3", (240, 427)), ("1/2", (480, 320)), ("100/101", (240, 320)), ("1/9", (240, 320))]
)
def test_pixels_come_out_square(tmp_path, aspect, shape):
    """None is lost; what is nearly square, or absurd, is left."""
    ffmpeg("-f", "lavfi", "-i", SCENE, "-vf", f"setsar={aspect}", "-t", 0.1, tmp_path / "video.mkv")
    assert read(tmp_path / "video.mkv")[0][0].image.shape[:2] == shape


@needs_ffmpeg
@pytest.mark.parametrize("colours", ["ictcp", "ycgco", "bt2020c"])
def test_colours_that_ffmpeg_can_t_convert_are_taken_for_usual_ones(tmp_path, colours):
    words = "-c:v", "libx264", "-colorspace", colours
    ffmpeg("-f", "lavfi", "-i", "color=gray:size=160x120:rate=25:duration=0.2", *words, tmp_path / "video.mp4")
    frames, _ = read(tmp_path / "video.mp4")
    assert len(frames) == 5 and frames[0].image.mean() == pytest.approx(128, abs=3)


@pytest.mark.faults
def test_a_colour_space_that_there_is_not_is_taken_for_the_usual_one(tmp_path):
    colour, path = np.full((64, 64, 3), (60, 120, 200), np.uint8), tmp_path / "video.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", 10, width=64, height=64, pix_fmt="yuv420p")
        stream.codec_context.colorspace = 9
        frame = av.VideoFrame.from_ndarray(colour, "bgr24")
        container.mux([*stream.encode(frame), *stream.encode(None)])
    content = path.read_bytes()
    assert content.count(b"\x55\xb1\x81\x09") == 1  # Matroska's MatrixCoefficients, a byte
    path.write_bytes(content.replace(b"\x55\xb1\x81\x09", b"\x55\xb1\x81\xc8"))
    [frame], _ = read(path)
    np.testing.assert_allclose(frame.image.mean(axis=(0, 1)), colour[0, 0], atol=5)


SOUND = "-f", "lavfi", "-i", "sine=duration=6"


@needs_ffmpeg
@pytest.mark.parametrize("name, words", [
    ("sound.mkv", SOUND), ("sound.mp4", SOUND), ("sound.avi", SOUND), ("sound.flv", (*SOUND, "-ar", 44100)),
    ("repeated.avi", ("-vf", "select=lt(n\\,20)+eq(n\\,49)", "-fps_mode", "passthrough")),
    ("repeated.mp4", ("-vf", "select=lt(n\\,20)+eq(n\\,49)", "-fps_mode", "passthrough")),
])  # fmt: skip
def test_a_whole_video_misses_nothing(tmp_path, name, words):
    """Its sound may last longer, and a frame long."""
    codec = ["-c:v", "mpeg4" if name != "sound.flv" else "flv"]
    ffmpeg("-f", "lavfi", "-i", SCENE, *words, *codec, tmp_path / name)
    frames, source = read(tmp_path / name)
    assert len(frames) == (50 if "sound" in name else 21) and source.missing_seconds == 0 and source.skipped == 0


@needs_ffmpeg
def test_a_video_trimmed_without_encoding_misses_nothing(tmp_path):
    """As a phone does it: its first key frame lies before the beginning, and an edit list leaves that part out."""
    ffmpeg("-f", "lavfi", "-i", SCENE, *SOUND, "-t", 2, "-c:v", "mpeg4", "-g", 50, tmp_path / "video.mp4")
    ffmpeg("-ss", 1.2, "-i", tmp_path / "video.mp4", "-c", "copy", tmp_path / "trimmed.mp4")
    frames, source = read(tmp_path / "trimmed.mp4")
    assert len(frames) == pytest.approx(20, abs=1) and source.missing_seconds == 0
    assert frames[-1].seconds == pytest.approx(0.8, abs=0.1)


@needs_ffmpeg
@pytest.mark.faults
@pytest.mark.parametrize("suffix", ["mp4", "mkv", "flv"])
def test_pictures_that_end_before_the_sound_because_the_file_is_cut_are_missed(tmp_path, suffix):
    words = "-f", "lavfi", "-i", SCENE.replace("duration=2", "duration=6"), *SOUND, "-ar", 44100
    ffmpeg(*words, "-movflags", "+faststart", tmp_path / f"video.{suffix}")
    data = (tmp_path / f"video.{suffix}").read_bytes()
    (tmp_path / f"cut.{suffix}").write_bytes(data[: len(data) // 2])
    frames, source = read(tmp_path / f"cut.{suffix}")
    assert source.missing_seconds == pytest.approx(6 - len(frames) / 25, abs=0.6)


@pytest.mark.faults
def test_a_header_that_claims_years_is_bounded_by_the_size(tmp_path):
    path = record_video(tmp_path / "video.webm", times=[0, 0.1, 0.2])
    data = path.read_bytes()
    start = data.index(b"\x44\x89") + 3  # Matroska's Duration, a float of 8 bytes, in milliseconds
    assert data[start - 1] == 0x88
    path.write_bytes(
        data[:start] + struct.pack(">d", 25 * 365 * 86400 * 1000) + data[start + 8 :].replace(b"DURATION", b"DURATIOM")
    )
    frames, source = read(path)
    assert len(frames) == 3 and source.frame_count <= len(data)


@pytest.mark.faults
@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits memory so")
def test_a_header_that_claims_many_samples_takes_no_more_than_the_bound(tmp_path):
    path = write_video(tmp_path / "video.mp4", [gray(0)] * 9, codec="mp4v")
    data = bytearray(path.read_bytes())
    start = data.index(b"stsz") + 8
    data[start : start + 8] = struct.pack(">II", 1, 80_000_000)  # all samples of one byte, in one chunk
    start = data.index(b"stsc") + 12
    data[start : start + 12] = struct.pack(">III", 1, 80_000_000, 1)
    path.write_bytes(data)
    code = (
        "from expressions.inference.sources import Source\n"
        f"try: print(len(list(Source({str(path)!r}))))\nfinally: print(open('/proc/self/status').read())"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert int(re.search(r"VmHWM:\s*(\d+) kB", result.stdout)[1]) < 2_400_000


@pytest.mark.faults
def test_a_search_for_the_next_frame_ends(tmp_path, monkeypatch):
    """64 GB of zeros, which take no room on the disk."""
    path = record_video(tmp_path / "video.avi")
    os.truncate(path, 2**36)
    monkeypatch.setattr(video, "FILE_TIMEOUT", 0.2)
    monkeypatch.setattr(video, "LOST_TIMEOUT", 0.2)
    began = time.perf_counter()
    assert len(read(path)[0]) == 12
    assert time.perf_counter() - began < 5


@pytest.mark.faults
def test_a_jpeg_of_many_scans_is_a_broken_frame(tmp_path):
    """A scan of 30 bytes goes over all pixels, so that a small file takes hours."""
    progressive = [cv2.IMWRITE_JPEG_PROGRESSIVE, 1]
    images = [cv2.imencode(".jpg", gray(level), progressive)[1].tobytes() for level in (0, 100, 200)]
    images[1] = images[1][:-2] + images[1][images[1].rindex(b"\xff\xda") : -2] * 200 + images[1][-2:]
    with av.open(tmp_path / "video.avi", "w") as container:
        stream = container.add_stream("mjpeg", 10, width=160, height=120, pix_fmt="yuvj420p")
        for number, data in enumerate(images):
            packet = av.Packet(data)
            packet.stream, packet.pts, packet.dts, packet.time_base = stream, number, number, Fraction(1, 10)
            container.mux(packet)
    frames, source = read(tmp_path / "video.avi")
    assert [round(frame.image.mean(), -1) for frame in frames] == [0, 200] and source.skipped == 1


REFERENCES = {  # by name; {secret}: an absolute path, {server}: an address. Each names what another file holds
    "ffconcat.mp4": "ffconcat version 1.0\nfile {secret}\n",
    "concat.txt.mp4": "ffconcat version 1.0\nfile {server}/a.ts\n",
    "hls.mp4": "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:2,\n{secret}\n#EXT-X-ENDLIST\n",
    "hls.m3u8": "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:2,\nfile://{secret}\n#EXT-X-ENDLIST\n",
    "variants.m3u8": "#EXTM3U\n#EXT-X-STREAM-INF:BANDWIDTH=1\nffconcat.mp4\n#EXT-X-STREAM-INF:BANDWIDTH=2\nhls.m3u8\n",
    "concat.m3u8": "#EXTM3U\n#EXTINF:2,\nconcat:{secret}|{secret}\n#EXT-X-ENDLIST\n",
    "subfile.m3u8": "#EXTM3U\n#EXTINF:2,\nsubfile,,start,0,end,0,,:{secret}\n#EXT-X-ENDLIST\n",
    "crypto.m3u8": "#EXTM3U\n#EXTINF:2,\ncrypto+file://{secret}\n#EXT-X-ENDLIST\n",
    "key.m3u8": "#EXTM3U\n#EXT-X-KEY:METHOD=AES-128,URI=\"file://{secret}\"\n#EXTINF:2,\na.ts\n#EXT-X-ENDLIST\n",
    "map.m3u8": "#EXTM3U\n#EXT-X-MAP:URI=\"{secret}\"\n#EXTINF:2,\na.ts\n#EXT-X-ENDLIST\n",
    "data.m3u8": "#EXTM3U\n#EXTINF:2,\ndata:text/plain,ffconcat version 1.0%0Afile {secret}\n#EXT-X-ENDLIST\n",
    "dash.mpd": '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static" '
    'mediaPresentationDuration="PT2S" profiles="urn:mpeg:dash:profile:isoff-on-demand:2011"><Period><AdaptationSet '
    'mimeType="video/mp4"><Representation id="1" bandwidth="1"><BaseURL>file://{secret}</BaseURL></Representation>'
    "</AdaptationSet></Period></MPD>",
    "session.sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\n"
    "a=rtpmap:96 H264/90000\n",
    "redirect.asf": "[Reference]\nRef1={server}/a.ts\n",
    "titles.idx": "# VobSub index file, v7 (do not modify this line!)\nid: en, index: 0\n"
    "timestamp: 00:00:00:000, filepos: 0\n",
    "script.avs": 'DirectShowSource("{secret}")\n',
    "metadata.mp4": ";FFMETADATA1\ntitle=x\n",
    "%d.png": "no image",
}  # fmt: skip


class Server(BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.paths.append(self.path)
        name = self.path[1:]
        if name == "redirect":
            self.send_response(302)
            self.send_header("Location", f"file://{self.server.secret}")
            self.end_headers()
        elif name in self.server.texts:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(self.server.texts[name])
        else:
            self.send_error(404)

    def log_message(self, *_):
        pass


@needs_ffmpeg
@pytest.mark.faults
@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("strace"), reason="needs Debian's package strace")
def test_no_video_makes_the_program_read_another_file_or_address(tmp_path):
    """Each format that FFmpeg knows to name others, as a file and at an address: what is opened and connected to."""
    secret = tmp_path / "private" / "secret.ts"
    secret.parent.mkdir()
    ffmpeg("-f", "lavfi", "-i", SCENE, secret)
    mov = write_video(tmp_path / "reference.mov", [gray(0)] * 9, codec="mp4v").read_bytes()
    (tmp_path / "titles.sub").touch()
    with ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        address = f"http://127.0.0.1:{server.server_port}"
        texts = {name: text.format(secret=secret, server=address).encode() for name, text in REFERENCES.items()}
        # an alias: the data lie in the file that this box names
        alias = b"url " + bytes(4) + f"file://{secret}".encode() + b"\0"
        old = mov[mov.index(b"url ") - 4 :][:12]
        texts["reference.mov"] = mov.replace(old, struct.pack(">I", len(alias) + 4) + alias)
        server.texts, server.secret, server.paths = texts, secret, []
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        for name, data in texts.items():
            (tmp_path / name).write_bytes(data)
        sources = [str(tmp_path / name) for name in texts]
        sources += [f"{address}/{name.replace('%', '%25')}" for name in (*texts, "redirect")]
        sources += [
            f"concat:{secret}",
            f"subfile,,start,0,end,0,,:{secret}",
            f"file://{secret}",
            f"data:text/plain,{secret}",
        ]
        code = (
            "import sys, expressions\nfrom expressions.inference import video\nvideo.LOST_TIMEOUT = 2\n"
            "from expressions.inference.sources import Source\n"
            "for name in sys.argv[1:]:\n    try:\n        print('opened', name, len(list(Source(name))))\n"
            "    except expressions.UserError as error:\n        print(error)\n"
        )
        log = tmp_path / "log"
        words = ["strace", "-f", "-qq", "-e", "trace=openat,open,connect,bind", "-o", log]
        result = subprocess.run(
            [*words, sys.executable, "-c", code, *sources], capture_output=True, text=True, cwd=ROOT, env=ENVIRONMENT
        )
        assert result.returncode == 0, result.stderr
        server.shutdown()
    calls = log.read_text()
    assert "secret.ts" not in calls and "titles.sub" not in calls
    assert "video.mp4" in calls or "ffconcat.mp4" in calls  # so that the log is one
    assert not re.search(r"bind\(\d+, \{sa_family=AF_INET", calls)  # no port is opened
    ports = set(re.findall(r"connect\(\d+, \{sa_family=AF_INET, sin_port=htons\((\d+)\)", calls))
    assert ports <= {str(server.server_port)}
    assert not [
        line for line in result.stdout.splitlines() if line.startswith("opened") and "reference.mov" not in line
    ]
    # files connect to nothing: all that was asked for is what the addresses themselves name, and parts that http names
    assert {path.replace("%25", "%") for path in server.paths} <= {f"/{name}" for name in (*texts, "redirect", "a.ts")}
    assert server.paths.count("/a.ts") <= 4
