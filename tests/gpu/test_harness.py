"""Tests of the parts and of run.sh, with programs that go wrong. They need no GPU and nothing that is built.

    python3 -m unittest discover -s tests/gpu -p 'test_*.py'
"""

import argparse
import contextlib
import errno
import io
import json
import lzma
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
import unittest
from pathlib import Path
from typing import Any
from unittest import mock

import checking
import commands
import machine
import parts
import paths
import standin

HERE = Path(__file__).resolve().parent
QUICK = {theme: 3.0 for theme in commands.THEMES}


def program(folder: Path, name: str, text: str) -> Path:
    """A file that can be run."""
    path = folder / name
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def python_program(folder: Path, name: str, text: str) -> Path:
    return program(folder, name, f"#!{sys.executable}\n{text}")


class Folder(unittest.TestCase):
    """A test with a temporary folder."""

    def setUp(self) -> None:
        holder = tempfile.TemporaryDirectory()
        self.addCleanup(holder.cleanup)
        self.folder = Path(holder.name)

    def environment(self, **values: str) -> None:
        """Environment variables until the test's end; empty ones are taken away."""
        patch = mock.patch.dict(os.environ, values)
        patch.start()
        self.addCleanup(patch.stop)
        for name in [name for name, value in values.items() if not value]:
            del os.environ[name]

    def arguments(self, only: str, *more: str) -> argparse.Namespace:
        args = parts.parse(["--only", only, "--out", str(self.folder / "out"), "--commit", "test", *more])
        args.gpu_binary = [sys.executable, HERE / "standin.py"]
        return args

    def wrapper(self, text: str) -> Path:
        """The stand-in, behind some lines of Python."""
        run = f"os.execv({sys.executable!r}, [{sys.executable!r}, {str(HERE / 'standin.py')!r}, *sys.argv[1:]])\n"
        return python_program(self.folder, "gpu", f"import os, sys\n{text}sys.stdout.flush()\n{run}")

    def call(self, args: argparse.Namespace, faults: str = "") -> tuple[dict[str, Any], str, bool]:
        """Runs the parts: results.json, RESULTS.md, and whether all is well."""
        self.environment(**{standin.FAULTS: faults, "CUDA_HOME": ""})
        with contextlib.redirect_stdout(io.StringIO()), mock.patch.dict(commands.THEMES, QUICK):
            call = parts.call_parts(args)
            well = parts.all_is_well(call)
        return json.loads((args.out / "results.json").read_text()), (args.out / "RESULTS.md").read_text(), well


class Check(Folder):
    """The part `check`, with a stand-in that goes wrong."""

    def setUp(self) -> None:
        super().setUp()
        without = mock.patch.object(checking, "sanitizer", lambda: None)
        for patch in (without, mock.patch.object(commands, "RERUN_LIMIT", 1.0)):
            patch.start()
            self.addCleanup(patch.stop)

    def checked(self, faults: str) -> tuple[dict[str, Any], str, bool]:
        results, text, well = self.call(self.arguments("check"), faults)
        return results["parts"]["check"], text, well

    def failures(self, found: dict[str, Any], theme: str) -> dict[str, str]:
        """What failed, and what is said of it."""
        failed = [each for each in found["checks"] if each["theme"] == theme and not each["passed"]]
        return {f"{each['name']} {each['dtype']}": each.get("failure", "") for each in failed}

    def others_are_whole(self, found: dict[str, Any], theme: str) -> None:
        for name, names in standin.THEMES.items():
            if name != theme:
                checks = [each for each in found["checks"] if each["theme"] == name]
                self.assertEqual(len(checks), 2 * len(names), name)
                self.assertTrue(found["themes"][name]["complete"], name)

    def test_a_theme_that_hangs_is_named_and_hides_no_other(self) -> None:
        with mock.patch.dict(QUICK, attention=1.0):
            found, text, well = self.checked("attention=hang")
        name = standin.THEMES["attention"][0]
        (failure,) = self.failures(found, "attention").items()
        self.assertEqual(failure[0], f"{name} bf16")
        self.assertRegex(failure[1], r"no result: stopped after \d+ s, its time limit")
        self.assertIn(f"| {name} | bf16 | no result: stopped", text)
        self.assertFalse(found["themes"]["attention"]["complete"])
        self.others_are_whole(found, "attention")
        self.assertFalse(well)

    def test_a_process_that_dies_is_named_and_hides_no_other(self) -> None:
        found, text, _ = self.checked("linear=abort")
        name = standin.THEMES["linear"][0]
        self.assertEqual(self.failures(found, "linear"), {f"{name} bf16": "no result: killed by SIGABRT"})
        self.assertIn(f"| {name} | bf16 | no result: killed by SIGABRT |", text)
        self.assertFalse(found["themes"]["linear"]["complete"])
        self.assertEqual(sum(each["theme"] == "linear" and each["passed"] for each in found["checks"]), 2)
        self.others_are_whole(found, "linear")

    def test_a_failure_s_text_is_in_both_files(self) -> None:
        for fault, words, outcome in (
            ("lost", "CUDA_ERROR_ILLEGAL_ADDRESS", "the GPU's context was lost"),
            ("watchdog", "the last kernel launched: head_bf16", "a comparison gave no answer"),
            ("fail", "CUBLAS_STATUS_INVALID_VALUE", "exit code 1"),
        ):
            found, text, well = self.checked(f"head={fault}")
            (failure,) = self.failures(found, "head").values()
            self.assertIn(words, failure)
            failed = text.index("## Failed comparisons")
            self.assertIn(words, text[failed : text.index("##", failed + 2)])
            self.assertIn(outcome, found["themes"]["head"]["outcome"])
            self.assertEqual(found["themes"]["head"]["complete"], fault == "fail")
            self.others_are_whole(found, "head")
            self.assertFalse(well)

    def test_what_cannot_be_opened_is_said_and_not_run_again(self) -> None:
        found, text, well = self.checked("rows=open")
        theme = found["themes"]["rows"]
        self.assertIn("the GPU could not be opened", theme["outcome"])
        self.assertIn("equipoise-gpu: cuda:0: no driver", theme["stderr"])
        self.assertIn("equipoise-gpu: cuda:0: no driver", text)
        self.assertNotIn("rerun", theme)
        self.assertFalse(well)

    def test_a_failed_theme_runs_again_and_small_under_the_sanitizer(self) -> None:
        tool = python_program(
            self.folder,
            "compute-sanitizer",
            "import subprocess, sys\n"
            "at = sys.argv.index(sys.argv[sys.argv.index('--print-limit') + 2])\n"
            "print('========= Invalid __global__ read of size 4 bytes', flush=True)\n"
            "print(*[f'========= line {i}' for i in range(60)], sep='\\n', flush=True)\n"
            "print('small' if '--small' in sys.argv else 'whole', flush=True)\n"
            "subprocess.run(sys.argv[at:])\n"
            "sys.exit(int(sys.argv[sys.argv.index('--error-exitcode') + 1]))\n",
        )
        with mock.patch.object(checking, "sanitizer", lambda: str(tool)):
            found, text, _ = self.checked("steps=abort")
        again = found["themes"]["steps"]["rerun"]
        self.assertEqual(again["tool"], "compute-sanitizer memcheck")
        self.assertEqual(again["outcome"], "memcheck found errors")
        self.assertEqual(len(again["lines"]), 40)
        self.assertIn("small", again["lines"])
        self.assertIn("========= line 59", again["lines"])
        self.assertNotIn("========= line 0", again["lines"])
        self.assertIn("========= line 59", text)
        counted = [each for each in found["checks"] if each["theme"] == "steps"]
        self.assertEqual(len(counted), len(standin.THEMES["steps"]) + 1, "what ran again does not count")

    def test_a_sanitizer_that_does_not_work_is_left_out(self) -> None:
        tool = program(self.folder, "compute-sanitizer", "#!/bin/sh\necho Failed to initialize\nexit 1\n")
        with mock.patch.object(checking, "sanitizer", lambda: str(tool)):
            found, _, _ = self.checked("head=lost")
        self.assertEqual(found["themes"]["head"]["rerun"]["tool"], "CUDA_LAUNCH_BLOCKING=1")
        self.assertIn(f"head: {tool} did not work: ended with exit code 1", found["remarks"])

    def test_a_sanitizer_under_which_nothing_passes_did_not_work(self) -> None:
        opened = 'echo \'{"event": "opened", "gpu": "G", "libraries": {}}\'\n'
        for end in ("echo Device not supported\nexit 1\n", "sleep 60\n"):
            tool = program(self.folder, "compute-sanitizer", f"#!/bin/sh\n{opened}{end}")
            with mock.patch.object(checking, "sanitizer", lambda: str(tool)):
                found, _, _ = self.checked("head=lost")
            again = found["themes"]["head"]["rerun"]
            self.assertEqual(again["tool"], "CUDA_LAUNCH_BLOCKING=1")
            self.assertIn("context was lost", again["outcome"])
            self.assertTrue(any(f"{tool} did not work" in remark for remark in found["remarks"]))

    def test_without_the_sanitizer_launches_are_waited_for(self) -> None:
        seen = self.folder / "seen"
        args = self.arguments("check")
        line = f"print(os.environ.get('CUDA_LAUNCH_BLOCKING', '0'), end='', file=open({str(seen)!r}, 'a'))\n"
        args.gpu_binary = [self.wrapper(line)]
        results, _, _ = self.call(args, "rows=far,head=lost")
        self.assertEqual(seen.read_text(), "00000011")
        remarks = [remark for remark in results["parts"]["check"]["remarks"] if "again" in remark]
        self.assertEqual([remark.split(",")[0] for remark in remarks], ["head", "rows"], "what broke comes first")

    def test_where_the_sanitizer_is_looked_for(self) -> None:
        mock.patch.stopall()
        home = self.folder / "toolkit"
        (home / "bin").mkdir(parents=True)
        program(home / "bin", "compute-sanitizer", "")
        self.environment(PATH="/nowhere", CUDA_HOME=str(home))
        self.assertEqual(SANITIZER(), str(home / "bin/compute-sanitizer"))


SANITIZER = checking.sanitizer


class Stuck(Folder):
    """A process that does not end when it is killed."""

    def stuck_at(self, word: str) -> Any:
        """Such a process among those whose command line has a word: its end is not seen."""
        real = machine.reaped

        def reaped(child: subprocess.Popen[bytes]) -> bool:
            return real(child) and word not in map(str, child.args)

        return mock.patch.object(machine, "reaped", reaped)

    def test_later_parts_are_left_out_and_the_call_ends(self) -> None:
        began = time.monotonic()
        with self.stuck_at("attention"), mock.patch.dict(QUICK, attention=1.0):
            results, text, well = self.call(self.arguments("check,glance,bench"), "attention=hang")
        self.assertLess(time.monotonic() - began, 15)
        self.assertFalse(well)
        check = results["parts"]["check"]
        self.assertIn("hangs in the driver", check["themes"]["attention"]["outcome"])
        self.assertTrue(check["themes"]["linear"]["complete"])
        self.assertEqual(check["themes"]["steps"]["outcome"], parts.GPU_LOST)
        self.assertFalse(any("rerun" in theme for theme in check["themes"].values()))
        for part in ("glance", "bench"):
            self.assertEqual(results["parts"][part]["remarks"], [parts.GPU_LOST])
        self.assertEqual(text.count(parts.GPU_LOST + "\n"), 5, "three themes and two parts")

    def test_it_ends_a_part_in_its_middle(self) -> None:
        with self.stuck_at("8192"):
            results, _, _ = self.call(self.arguments("bench,train"))
        bench = results["parts"]["bench"]
        self.assertEqual(len(bench["runs"]), 3, "what was measured before it, and itself")
        self.assertIn(f"the rest was {parts.GPU_LOST}", bench["remarks"])
        self.assertEqual(results["parts"]["train"]["remarks"], [parts.GPU_LOST])

    def test_the_program_ends_though_the_process_does_not(self) -> None:
        """parts.py as a process of its own, with a child that ignores being killed, as far as it can see."""
        code = (
            "import commands, machine, parts, sys\n"
            "stop, commands.BENCH_LIMIT, parts.SHORTEST = machine.stop, 1.0, 0.5\n"
            "machine.stop = lambda child: 'gpu-bench' not in child.args and stop(child)\n"
            "sys.argv = ['parts.py', '--only', 'glance,bench', '--out', sys.argv[1], '--gpu-binary', sys.argv[2]]\n"
            "parts.main()\n"
        )
        pid = self.folder / "pid"
        text = f"import os, time\nopen({str(pid)!r}, 'w').write(str(os.getpid()))\ntime.sleep(60)\n"
        hang = python_program(self.folder, "gpu", text)
        with mock.patch.dict(os.environ, PYTHONPATH=str(HERE)):
            done = subprocess.run(
                [sys.executable, "-c", code, self.folder / "out", hang], capture_output=True, text=True, timeout=30
            )
        os.kill(int(pid.read_text()), signal.SIGKILL)
        self.assertEqual(done.returncode, 1, done.stderr)
        self.assertIn("Against the goals", done.stdout)
        results = json.loads((self.folder / "out/results.json").read_text())
        self.assertIn("did not end: it hangs in the driver", results["parts"]["glance"]["remarks"][0])
        self.assertEqual(results["parts"]["bench"]["remarks"], [parts.GPU_LOST])

    def test_who_holds_the_pipe_counts(self) -> None:
        """A process under a tool: the tool ends, and what it started does not."""
        script = (
            "import subprocess, sys\n"
            "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(3)'], start_new_session=True)\n"
        )
        with (self.folder / "log").open("w") as log, mock.patch.object(machine, "JOIN", 0.5):
            ended = machine.run([sys.executable, "-c", script], 5, log, machine.Gpu())
        self.assertTrue(ended.stuck)

    def test_what_a_process_left_behind_is_ended(self) -> None:
        script = "import subprocess, sys\nsubprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        with (self.folder / "log").open("w") as log:
            ended = machine.run([sys.executable, "-c", script], 5, log, machine.Gpu())
        self.assertEqual((ended.stuck, ended.timed_out, ended.status), (False, False, 0))

    def test_nvml_that_gives_no_answer_stops_nothing(self) -> None:
        class Broken(machine.Gpu):
            def open(self, index: int = 0) -> None:
                pass

            def used(self) -> int | None:
                time.sleep(60)
                return 1

        gpu = Broken()
        with mock.patch.object(machine, "NVML_LIMIT", 0.2), (self.folder / "log").open("w") as log:
            began = time.monotonic()
            ended = machine.run([sys.executable, "-c", "print(1)"], 5, log, gpu)
            again = machine.run([sys.executable, "-c", "print(2)"], 5, log, gpu)
        self.assertLess(time.monotonic() - began, 3)
        self.assertEqual((ended.text, again.text, ended.peak(), gpu.silent), ("1\n", "2\n", None, True))


class Speed(Folder):
    """The parts that measure."""

    PEER = """
import json
bench = {"event": "bench", "rows": 2, "length": 2048}
for event in (
    {"event": "start", "torch": "2"},
    {**bench, "mode": "adapter-f32", "tokens_per_second": 0.5, "peak_bytes": 10 * 2**30},
    {**bench, "mode": "adapter-bf16", "tokens_per_second": 0.8, "peak_bytes": 8 * 2**30},
    {"event": "failed", "rows": 1, "length": 8192, "mode": "adapter-f32", "why": "out of memory: much"},
    {"event": "end"},
):
    print(json.dumps(event), flush=True)
"""

    def test_three_variants_and_what_is_asked_of_them(self) -> None:
        args = self.arguments("glance,bench,peer")
        seen = self.folder / "seen"
        args.gpu_binary = [self.wrapper(f"print(*sys.argv[1:], file=open({str(seen)!r}, 'a'))\n")]
        script = self.folder / "peer.py"
        script.write_text(self.PEER)
        with mock.patch.object(commands, "peer_command", lambda args: [sys.executable, script]):
            results, text, _ = self.call(args)
        lines = seen.read_text().splitlines()
        self.assertIn("--warmup 1 --steps 2 --kept-layers 0", lines[0])
        self.assertIn("--length 2048 --quantization q4_k", lines[1])
        self.assertTrue(lines[1].endswith("--warmup 2 --steps 6 --kept-layers 0"))
        self.assertTrue(lines[2].endswith("--kept-layers auto"))
        # 0.7 of 8 GiB.
        self.assertTrue(lines[8].endswith("--kept-layers auto --max-memory-mb 5734"), lines[8])
        self.assertTrue(lines[9].endswith("--kept-layers 0"))
        self.assertEqual(len(lines), 10)
        variants = [run["variant"] for run in results["parts"]["bench"]["runs"]]
        self.assertEqual(variants, ["none", "auto", *["none"] * 5])
        self.assertEqual([run["variant"] for run in results["parts"]["peer"]["ours"]], ["fitting", "none"])
        self.assertIn("1x8192 adapter-f32: out of memory: much", results["parts"]["peer"]["remarks"])
        self.assertIn("| Equipoise q4_k, kept 9 of 32 within 0.7x | 2x2048 |", text)
        self.assertIn("1.25x | **not met** (kept 9 of 32 within 0.7x)", text)

    def test_what_has_no_time_left_is_left_out(self) -> None:
        args = self.arguments("bench")
        args.gpu_binary = [self.wrapper("import time\ntime.sleep(0.7)\n")]
        with mock.patch.dict(parts.LIMITS, bench=2.5), mock.patch.object(parts, "SHORTEST", 1.0):
            results, _, well = self.call(args)
        bench = results["parts"]["bench"]
        done = len(bench["runs"])
        self.assertIn(done, (1, 2, 3))
        left_out = [f"{what}: left out, too little time was left" for what in commands.MEASUREMENTS[done:]]
        self.assertEqual(bench["remarks"], left_out)
        self.assertFalse(well)

    def test_a_full_memory_is_said(self) -> None:
        results, text, well = self.call(self.arguments("glance"), "bench=memory")
        (remark,) = results["parts"]["glance"]["remarks"]
        self.assertIn("ended with exit code 3: equipoise-gpu: the GPU's memory is full", remark)
        self.assertIn(remark, text)
        self.assertFalse(well)

    def test_a_later_call_goes_on(self) -> None:
        args = self.arguments("glance")
        self.call(args)
        later = self.arguments("bench")
        results, _, _ = self.call(later)
        self.assertEqual(list(results["parts"]), ["glance", "bench"])
        log = (args.out / "log.txt").read_text()
        self.assertEqual(log.count("== "), 2, "the log of the first call is still there")

    def test_results_of_another_machine_are_kept_aside(self) -> None:
        args = self.arguments("glance")
        args.out.mkdir()
        for text in ('{"machine": {}, "parts": {"check": {}}}', "{"):
            (args.out / "results.json").write_text(text)
            results, _, _ = self.call(args)
            self.assertEqual(list(results["parts"]), ["glance"])
            self.assertEqual((args.out / "results.old.json").read_text(), text)

    def test_results_that_this_version_cannot_show_are_kept_aside(self) -> None:
        args = self.arguments("glance")
        good, _, _ = self.call(args)
        about = {"date": "1", "command": "c", "version": "v", "remarks": [], "complete": True}
        unversioned = {name: value for name, value in about.items() if name != "version"}
        run = {"rows": 2, "length": 2048, "quantization": "q4_k", "variant": "none", "date": "1"}
        for old in ({"check": unversioned}, {"bench": {**about, "runs": [run]}}, {"check": None}, []):
            text = json.dumps({**good, "parts": old})
            (args.out / "results.json").write_text(text)
            results, _, _ = self.call(args)
            self.assertEqual(list(results["parts"]), ["glance"], old)
            self.assertEqual((args.out / "results.old.json").read_text(), text)

    def test_a_full_disk_does_not_end_the_call(self) -> None:
        args, said = self.arguments("glance,bench"), io.StringIO()

        def full(*_: object) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        with contextlib.redirect_stdout(said), mock.patch.object(Path, "write_text", full):
            call = parts.call_parts(args)
        self.assertEqual(said.getvalue().count("results cannot be written"), 1)
        self.assertEqual(len(call.results["parts"]["bench"]["runs"]), len(commands.MEASUREMENTS))
        self.assertFalse(parts.all_is_well(call))
        text = parts.report.document(call.results, passed=False)
        self.assertIn("| Equipoise q4_k, kept 0 | 2x2048 |", text)

    def test_a_part_that_raises_does_not_end_the_call(self) -> None:
        def broken(call: Any) -> None:
            call.start("glance")
            raise KeyError("what")

        with mock.patch.dict(parts.WORK, glance=broken):
            results, text, well = self.call(self.arguments("glance,bench"))
        self.assertEqual(results["parts"]["glance"]["remarks"], ["broke off: KeyError: 'what'"])
        self.assertIn("broke off: KeyError", text)
        self.assertTrue(results["parts"]["bench"]["complete"])
        self.assertFalse(well)
        self.assertIn("Traceback", (self.folder / "out/log.txt").read_text())


class Training(Folder):
    """The parts that train, with a program that writes metrics.jsonl."""

    EQUIPOISE = """
import json, os, sys
if sys.argv[1] == "--version":
    sys.exit(print("equipoise 0"))
pairs = [word.split("=", 1) for word in sys.argv if "=" in word]
sets = dict(pairs)
steps, out = int(sets["training.max_steps"]), sets["output_dir"]
os.makedirs(out)
seed, kind = int(sets.get("training.seed", 0)), sets.get("objective.type", "bft")
off = 0.02 if sets["compute"] == "bf16" and seed == 0 else 0.0
with open(out + "/metrics.jsonl", "w") as file:
    say = lambda **line: print(json.dumps(line), file=file)
    say(type="validation", step=0, cross_entropy=3.0, token_accuracy=0.25)
    for step in range(1, steps + 1):
        say(type="step", step=step, objective_loss=2.0 * (1 + off), cross_entropy=2.0)
    if not (kind == "dft" and seed == 2):
        say(type="validation", step=steps, cross_entropy=2.0 + seed / 8, token_accuracy=0.5 + len(kind) / 8)
"""

    def trained(self, only: str, model: str) -> tuple[dict[str, Any], str, bool]:
        path = self.folder / model
        path.write_text("")
        args = self.arguments(only, "--model", str(path))
        args.binary = python_program(self.folder, "equipoise", self.EQUIPOISE)
        return self.call(args)

    def test_a_model_that_was_cut_is_named(self) -> None:
        name = "SmolLM2-135M-Instruct-first-10-layers.Q4_1.gguf"
        results, text, _ = self.trained("train", name)
        self.assertEqual(results["parts"]["train"]["model"], name)
        self.assertIn(f"SmolLM2 is `{name}`: its first 10 layers, **not the whole model**.", text)
        self.assertIn("2.000% apart at most | **not met** (the first 10 layers only)", text)
        whole, text, _ = self.trained("train", "SmolLM2-135M-Instruct.Q4_1.gguf")
        self.assertNotIn("not the whole model", text)
        self.assertTrue(whole["parts"]["train"]["complete"])

    def test_nothing_begins_after_the_part_s_end(self) -> None:
        # Just enough to begin the part, and then no more.
        with mock.patch.dict(parts.LIMITS, train=parts.SHORTEST):
            results, _, well = self.trained("train", "SmolLM2-135M-Instruct.Q4_1.gguf")
        train = results["parts"]["train"]
        self.assertEqual(train["remarks"][0], "quickstart on cpu in f32: left out, too little time was left")
        self.assertEqual(len(train["remarks"]), 6)
        verdicts = [each for each in results["goals"] if "loss curve" in each["goal"]]
        self.assertEqual([each["met"] for each in verdicts], [None, None])
        self.assertFalse(well)

    def test_evidence_of_each_objective_and_seed(self) -> None:
        results, text, well = self.trained("evidence", "SmolLM2-135M-Instruct.Q4_1.gguf")
        runs = {(run["objective"], run["seed"]): run for run in results["parts"]["evidence"]["runs"]}
        self.assertEqual(set(runs), {(objective, seed) for objective in ("sft", "dft", "bft") for seed in (1, 2)})
        self.assertEqual(runs["sft", 2]["after"], {"loss": 2.25, "token_accuracy": 0.875})
        self.assertIsNone(runs["dft", 2]["after"])
        self.assertIn("| bft | 1 | 3.0000 | 2.1250 | 25.00% | 87.50% |", text)
        self.assertIn("| dft | 2 | 3.0000 | – | 25.00% | – |", text)
        self.assertFalse(well, "one of them did not come to its end")

    def test_evidence_needs_the_whole_model(self) -> None:
        results, _, _ = self.trained("evidence", "SmolLM2-135M-Instruct-first-10-layers.Q4_1.gguf")
        self.assertEqual(results["parts"]["evidence"]["runs"], [])
        self.assertIn("needs the whole model", results["parts"]["evidence"]["remarks"][0])


class Paths(Folder):
    """Which libraries our programs are given."""

    def interpreter(self, *libraries: str) -> tuple[str, Path]:
        """An interpreter with these files in `nvidia` among its packages."""
        site = self.folder / "site-packages"
        for library in libraries:
            path = site / "nvidia" / library
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        text = f"#!/bin/sh\nPYTHONPATH={site} exec {sys.executable} \"$@\"\n"
        return str(program(self.folder, "python", text)), site / "nvidia"

    def test_the_wheels_of_the_interpreter_that_is_named(self) -> None:
        self.environment(EQUIPOISE_CUDA_PATH="", PYTHONPATH="")
        for library in ("cu13/lib/libcublas.so.13", "cublas/lib/libcublas.so.12"):
            with self.subTest(library):
                python, folder = self.interpreter(library)
                self.assertEqual(paths.environment(python), {"EQUIPOISE_CUDA_PATH": f"{folder}:/usr/local/cuda"})
                self.assertEqual(paths.environment(sys.executable), {}, "this one has none")
                shutil.rmtree(folder)

    def test_wheels_without_cublas_are_no_choice(self) -> None:
        self.environment(EQUIPOISE_CUDA_PATH="", PYTHONPATH="")
        python, _ = self.interpreter("cu13/lib/libnvrtc.so.13", "nccl/lib/libnccl.so.2")
        self.assertEqual(paths.environment(python), {})

    def test_a_variable_that_is_set_stays(self) -> None:
        self.environment(EQUIPOISE_CUDA_PATH="/opt/mine")
        python, _ = self.interpreter("cu13/lib/libcublas.so.13")
        self.assertEqual(paths.environment(python), {})

    def test_versions_that_differ_are_doubtful(self) -> None:
        def doubts(**versions: str) -> list[str]:
            names = {f"{name} {version}": f"/a/lib{name}.so" for name, version in versions.items()}
            return paths.doubts({"opened": {"libraries": {"driver (CUDA 13.0)": "/b/libcuda.so.1"} | names}})

        self.assertEqual(doubts(cuBLAS="13.1.0", cuBLASLt="13.1.0", NVRTC="13.0"), [])
        (doubt,) = doubts(cuBLAS="13.1.0", cuBLASLt="13.0.2", NVRTC="13.0")
        self.assertIn("different versions", doubt)

    def test_the_program_gets_it_and_the_report_has_what_it_opened(self) -> None:
        self.environment(EQUIPOISE_CUDA_PATH="", PYTHONPATH="", LD_LIBRARY_PATH="/opt/old")
        python, folder = self.interpreter("cu13/lib/libcublas.so.13")
        args = self.arguments("glance", "--python", python)
        opened = {"driver": "/a/libcuda.so.1", "cuBLAS": "/b/libcublas.so.13", "cuBLASLt": "/c/libcublasLt.so.13"}
        text = (
            "import json, os\n"
            f"event = {{'event': 'opened', 'gpu': 'G', 'libraries': {opened!r}}}\n"
            "print(json.dumps(event))\n"
            "print(json.dumps({'tokens_per_second': 1, 'path': os.environ.get('EQUIPOISE_CUDA_PATH'),"
            " 'old': os.environ.get('LD_LIBRARY_PATH')}))\n"
        )
        args.gpu_binary = [python_program(self.folder, "gpu", text)]
        results, document, _ = self.call(args)
        (run,) = results["parts"]["glance"]["runs"]
        self.assertEqual((run["path"], run["old"]), (f"{folder}:/usr/local/cuda", "/opt/old"))
        self.assertEqual(results["libraries"]["opened"], {"gpu": "G", "libraries": opened})
        self.assertEqual(results["libraries"]["environment"]["EQUIPOISE_CUDA_PATH"], f"{folder}:/usr/local/cuda")
        self.assertEqual(results["libraries"]["environment"]["LD_LIBRARY_PATH"], "/opt/old")
        self.assertIn(", ".join(f"{name} `{path}`" for name, path in opened.items()), document)
        self.assertIn("**Doubtful:** cuBLAS and cuBLASLt were opened from different folders", document)
        self.assertIn("EQUIPOISE_CUDA_PATH", (args.out / "log.txt").read_text())


class Unpacking(Folder):
    """run.sh with packed programs."""

    TOOLS = ("bash", "basename", "chmod", "cp", "dirname", "mktemp", "realpath", "rm")

    def run_sh(
        self, xz: bool, lzma_works: bool = True, packed: bytes | None = None, more: tuple[str | Path, ...] = ()
    ) -> subprocess.CompletedProcess[str]:
        """Runs it with a packed program, and an interpreter that does no more than run that program."""
        tools = self.folder / "tools"
        tools.mkdir()
        for name in (*self.TOOLS, *(["xz"] if xz else [])):
            if path := shutil.which(name):
                (tools / name).symlink_to(path)
        lzma_line = f'exec {sys.executable} "$@"' if lzma_works else "exit 1"
        text = (
            f'#!{shutil.which("bash")}\nif [ "$1" = -c ]; then {lzma_line}; fi\n'
            'while [ $# -gt 0 ]; do\n'
            'if [ "$1" = --model ]; then echo "$2: $(<"$2")"; fi\n'
            'if [ "$1" = --binary ]; then exec "$2"; fi\n'
            "shift; done\n"
        )
        python = program(self.folder, "python", text)
        source = f"#!{shutil.which('bash')}\necho it runs\n".encode()
        archive = self.folder / "equipoise.xz"
        archive.write_bytes(lzma.compress(source) if packed is None else packed)
        words = ["--python", python, "--binary", archive, "--gpu-binary", python, *more, "--help"]
        return subprocess.run(
            [shutil.which("bash"), HERE / "run.sh", *words],
            capture_output=True,
            text=True,
            env={"PATH": str(tools)},
            timeout=20,
        )

    def test_without_xz_python_unpacks(self) -> None:
        done = self.run_sh(xz=False)
        self.assertEqual((done.stdout, done.returncode), ("it runs\n", 0), done.stderr)

    @unittest.skipUnless(shutil.which("xz"), "no xz")
    def test_with_xz_python_is_not_needed(self) -> None:
        done = self.run_sh(xz=True, lzma_works=False)
        self.assertEqual((done.stdout, done.returncode), ("it runs\n", 0), done.stderr)

    def test_a_packed_model_is_unpacked_under_its_name(self) -> None:
        model = self.folder / "Name-first-10-layers.Q4_1.gguf.xz"
        model.write_bytes(lzma.compress(b"weights"))
        done = self.run_sh(xz=False, more=("--model", model))
        self.assertRegex(done.stdout, r"/Name-first-10-layers\.Q4_1\.gguf: weights\nit runs\n", done.stderr)

    def test_without_both_it_says_so(self) -> None:
        done = self.run_sh(xz=False, lzma_works=False)
        self.assertEqual((done.stdout, done.returncode), ("", 2))
        self.assertIn("equipoise.xz cannot be unpacked, neither by xz nor by Python's lzma", done.stderr)

    def test_a_signal_to_run_sh_alone_reaches_python(self) -> None:
        text = (
            "import os, signal, sys, time\n"
            "if os.environ.get('GPU_RUN_LOOK'): sys.exit()\n"
            f"said = {str(self.folder / 'said')!r}\n"
            "def end(number, frame):\n"
            "    time.sleep(0.3)\n"
            "    open(said, 'a').write(signal.Signals(number).name)\n"
            "    sys.exit(143)\n"
            "signal.signal(signal.SIGTERM, end)\n"
            "open(said, 'w').write('began ')\n"
            "time.sleep(60)\n"
        )
        python, said = python_program(self.folder, "python", text), self.folder / "said"
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            said.unlink(missing_ok=True)
            words = ["--python", python, "--binary", python, "--gpu-binary", python]
            child = subprocess.Popen([shutil.which("bash"), HERE / "run.sh", *words])
            until = time.monotonic() + 10
            while not (said.exists() and said.read_text()) and time.monotonic() < until:
                time.sleep(0.05)
            child.send_signal(number)
            self.assertEqual(child.wait(10), 143)
            self.assertEqual(said.read_text(), "began SIGTERM")

    def test_a_damaged_file_is_not_run(self) -> None:
        done = self.run_sh(xz=False, packed=b"no archive")
        self.assertEqual((done.stdout, done.returncode), ("", 2))
        self.assertIn("cannot be unpacked", done.stderr)


if __name__ == "__main__":
    unittest.main()
