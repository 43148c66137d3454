"""Label many files by many workers: a table per file in a folder, and an index of them."""

import contextlib
import csv
import functools
import hashlib
import io
import os
import shutil
import time
from argparse import Namespace
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from pathlib import Path

from tqdm import tqdm

from expressions import ROOT, UserError
from expressions.cli import escape_unprintable
from expressions.files import lock_file
from expressions.inference import jobs, workers
from expressions.inference.detector import DETECTORS
from expressions.inference.names import expand_sources, is_list, output_path, read_source_list
from expressions.inference.recognizer import MODEL, ExpressionRecognizer
from expressions.inference.tables import append, import_pyarrow, path_cell

MAX_LISTED = 20  # failed files that are named at the end
# segments of a video that are handed out beyond twice as many as had frames, for a video may claim to have millions
SEGMENTS_AHEAD = 64
BAR = "{l_bar}{bar}| {n}/{total}{unit} [{elapsed}<{remaining}{postfix}]"


def annotate(options: Namespace) -> list[str]:
    """Label the files that the command's options name, without those that an earlier run has done.

    Returns messages on the files that could not be done. Raises UserError where none can be done.
    """
    folder = options.csv or options.parquet
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder}: is a file; --workers and --ray take a folder, for a table a file")
    if options.parquet:
        import_pyarrow()
    expand = read_source_list if is_list(options.source) else functools.cache(expand_sources)
    names = functools.partial(expand, options.source)  # a list is read each time, for it may name millions
    if names() == [options.source] and not os.path.exists(options.source):
        raise UserError(f"--source {options.source}: no such file; --workers and --ray label files, and no cameras")
    total = sum(1 for _ in names())
    # a faulty model or detector is reported here, and the network is compiled once for all workers
    ExpressionRecognizer(options.model, options.detector)
    settings = _make_settings(options)
    if not options.workers:
        print("Connecting to Ray ...", flush=True)
    pool = workers.processes(options.workers) if options.workers else workers.cluster(options.ray, ROOT)
    with pool as pool, Index(folder, settings.config_hash) as index:
        with tqdm(unit=" files", total=total, bar_format=BAR) as bar:
            batch = Coordinator(options.source, settings, index, bar)
            try:
                for job, outcome in workers.run_tasks(pool, jobs.run_job, batch.plan(names()), batch.priority_jobs):
                    batch.settle(job, outcome)
            except KeyboardInterrupt:
                tqdm.write("\nStopped. Run the command again to continue from here.")
                raise
        shutil.rmtree(folder / jobs.UNFINISHED, ignore_errors=True)
    return batch.report()


def _make_settings(options):
    folder, suffix = (options.csv, ".csv") if options.csv else (options.parquet, ".parquet")
    config = hashlib.sha256(repr((suffix, jobs.SEGMENT_SECONDS, jobs.SEGMENT_OVERLAP)).encode())
    named = options.detector in DETECTORS
    config.update(options.model.read_bytes())
    config.update(options.detector.encode() if named else Path(options.detector).read_bytes())
    model = None if options.model == MODEL else options.model.absolute()
    detector = options.detector if named else os.path.abspath(options.detector)
    return jobs.Settings(model, detector, folder.absolute(), suffix, config.hexdigest()[:16])


class _Segments:
    """How many segments of a video are planned and done, how many it says it has, and the last with frames, plus 1."""

    def __init__(self):
        self.planned, self.done, self.filled, self.claimed = 1, 0, 0, 1

    def settle(self, number, outcome):
        """Count a segment that is done. Returns the numbers of those to plan now."""
        self.done, self.claimed = self.done + 1, max(self.claimed, outcome.segments)
        if outcome.has_frames:
            self.filled = max(self.filled, number + 1)
        begin, self.planned = self.planned, max(self.planned, min(self.claimed, SEGMENTS_AHEAD + 2 * self.filled))
        return range(begin, self.planned)


class Coordinator:
    """Plans the jobs of a run, settles their outcomes, and reports at the end."""

    def __init__(self, source: str, settings: jobs.Settings, index: "Index", bar: tqdm):
        self.source, self.settings, self.index, self.bar = source, settings, index, bar
        self.priority_jobs = deque()  # of videos that are begun; they go before new files
        self.segments = {}  # of videos that are begun, by source: see _Segments
        self.total, self.messages, self.speed = Counter(), [], "0.0 frames/s"
        self.start = time.perf_counter()

    def plan(self, names: Iterable[str]) -> Iterator[jobs.Job]:
        """Yield a job for each file that is to be done."""
        for name in names:
            result = output_path(name, self.source) + self.settings.suffix
            if self.index.needs_processing(name, result):
                yield jobs.Job(self.settings, name, os.path.abspath(name), result)
            else:
                self.total["left out"] += 1
                self.bar.update()

    def settle(self, job: jobs.Job, outcome: jobs.Done | jobs.SegmentDone | jobs.Failed | None) -> None:
        """Enter a file into the index; after a segment, plan what follows. None: the workers died on the job."""
        if job.segment != 0 and job.source not in self.segments:  # another segment of the video failed
            return
        if isinstance(outcome, jobs.SegmentDone):
            segments = self.segments.setdefault(job.source, _Segments())
            planned = segments.settle(job.segment, outcome)
            self.priority_jobs.extend(job._replace(segment=number) for number in planned)
            if segments.done == segments.planned:
                self.priority_jobs.append(job._replace(segment=None, segments=segments.planned))
            return
        self.segments.pop(job.source, None)
        self.bar.update()
        if isinstance(outcome, jobs.Done):
            self.index.add(job.source, job.result, outcome)
            self.total.update(files=1, frames=outcome.frames, faces=outcome.faces)
            self.speed = f"{self.total['frames'] / (time.perf_counter() - self.start):.1f} frames/s"
            self.bar.set_postfix_str(self.speed, refresh=False)
            return
        why = f"given up after {workers.ATTEMPTS} workers died on it; is there too little memory?"
        message = outcome.message if outcome else f"{job.source}: {why}"
        self.index.fail(job.source, message)
        if len(self.messages) < MAX_LISTED:
            self.messages.append(message)

    def report(self) -> list[str]:
        """Print what was done. Return messages on what could not be done."""
        total, failed = self.total, self.index.failed
        left_out = f", {total['left out']} done before or named twice" if total["left out"] else ""
        seen = f"{total['frames']} frames, {total['faces']} faces, {self.speed}"
        print(f"{total['files']} files{left_out}: {seen}; see {self.index.path}")
        summary = f"{self.source}: {failed} files could not be done; see {self.index.failed_path}"
        return [*self.messages, summary] if failed else []


class Index(contextlib.AbstractContextManager):
    """index.csv in a folder of results, within `with`: which files are done, for a run that is begun again.

    A file gets its row when its result is there. Of a file that changed and was done again, the last row counts. Files
    that can't be done go into failed.csv, and the next run tries them again. config_hash is of all that decides what is
    written, so that results of two kinds don't mix. Raises UserError when the folder can't be written, holds something
    else, or another run uses it.
    """

    COLUMNS = ("source", "bytes", "modified", "result", "seconds", "frames", "faces", "people", "broken", "missing")

    def __init__(self, folder: Path, config_hash: str):
        self.folder, self.config_hash = Path(folder), config_hash
        self.path, self.failed_path = self.folder / "index.csv", self.folder / "failed.csv"
        self.failed = 0  # how many files can't be done
        # by source and result, and by result: a file's size and time; mere hashes, for there may be millions
        self.done, self.states = {}, {}
        with self._errors_as_user_errors():
            self.folder.mkdir(parents=True, exist_ok=True)
            if not self.path.exists() and any(not entry.name.startswith(".") for entry in self.folder.iterdir()):
                raise UserError(f"{self.folder}: holds other files, and no results; choose a new or an empty folder")
            self.file = open(self.path, "ab", buffering=0)
            lock_file(self.file, self.path)
            self._read()
            self.failed_path.unlink(missing_ok=True)  # not before it is sure that this run may begin

    @contextlib.contextmanager
    def _errors_as_user_errors(self):
        try:
            yield
        except (OSError, ValueError, IndexError, csv.Error) as error:
            raise UserError(f"{self.path}: can't be read or written ({error}); choose another folder") from None

    def _read(self):
        length, header = 0, [*self.COLUMNS, "made_by"]
        with open(self.path, "rb") as lines:
            for line in lines:
                is_ours = length or ",".join(header).encode().startswith(line)
                if is_ours and not line.endswith(b"\n"):  # a run was killed while it wrote
                    self.file.truncate(length)
                    break
                length += len(line)
                [values] = csv.reader([line.decode()])
                if values[-1] not in (self.config_hash, "made_by"):
                    raise UserError(
                        f"{self.path}: is of another model, detector or kind of table; choose another folder"
                    )
                source, size, modified, result = values[:4]
                self.done[hash((source, result))] = hash((size, modified))
        if not length:
            _append_row(self.file, header)

    def __exit__(self, *_):
        self.file.close()

    def needs_processing(self, source: str, result: str) -> bool:
        """Tell whether a file is new or changed, or its result, a path in the folder, is missing.

        False when this is asked again for the same result, for a list may name a file twice.
        """
        if result in (self.path.name, self.failed_path.name):
            raise UserError(f"{source}: its table would be {result}, which is the folder's own; rename it")
        key = hash(result)
        if key in self.states:
            return False
        try:
            status = os.stat(source)
            state = str(status.st_size), str(status.st_mtime_ns)
        except OSError:  # who tries to read it will tell
            state = "", ""
        done = self.done.get(hash((_cell(source), _cell(result)))) == hash(state)
        done = done and (self.folder / result).exists()
        self.states[key] = None if done else state
        return not done

    def add(self, source: str, result: str, counts: Iterable[float]) -> None:
        """Enter a file, as it was before it was read, with the values of the last six COLUMNS."""
        state, self.states[hash(result)] = self.states[hash(result)], None
        values = _cell(source), *state, _cell(result), *counts, self.config_hash
        with self._errors_as_user_errors():
            _append_row(self.file, values)

    def fail(self, source: str, message: str) -> None:
        """Enter a file that can't be done."""
        with self._errors_as_user_errors(), open(self.failed_path, "ab", buffering=0) as file:
            if not self.failed:
                _append_row(file, ["source", "why"])
            _append_row(file, [_cell(source), _cell(message)])
        self.failed += 1


def _cell(text):
    """A path as a cell, in one line; a message begins with one."""
    return path_cell(escape_unprintable(text))


def _append_row(file, values):
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerow(values)
    append(file, text.getvalue().encode())
