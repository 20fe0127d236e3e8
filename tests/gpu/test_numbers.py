"""Tests of what is made of numbers: comparisons, goals, tables, limits. They need no GPU and nothing that is built."""

import json
import math
import unittest
from typing import Any

import commands
import goals
import machine
import parts
import pieces
import reading
import registers
import report


class Reading(unittest.TestCase):
    """What counts of a comparison."""

    def line(self, **fields: object) -> dict[str, Any]:
        (check,) = reading.checks(json.dumps({"dtype": "bf16", "passed": True, **fields}))
        return check

    def test_a_step_s_tolerance_counts_up_to_a_limit_of_ours(self) -> None:
        for end, limit in ((": loss", 1e-2), (": gradient", 5e-2), (": worst tensor", 6e-2)):
            name = f"step Bft, packed{end}"
            for error, tolerance, passed in (
                (0.9 * limit, limit, True),
                (0.9 * limit, 0.8 * limit, False),
                (1.1 * limit, 2 * limit, False),
            ):
                check = self.line(name=name, error=error, tolerance=tolerance, cpu_error=0.01)
                self.assertEqual(check["passed"], passed, (name, error, tolerance))
                self.assertEqual(check["cpu_error"], 0.01)

    def test_an_operation_s_limit_is_not_a_step_s(self) -> None:
        self.assertFalse(self.line(name="attention", error=0.03, tolerance=0.05)["passed"])
        self.assertFalse(self.line(name="attention", error=None, tolerance=0.05)["passed"])

    def test_a_begin_is_answered_by_any_result_after_it(self) -> None:
        begin = '{"event": "begin", "name": "a", "dtype": "f32"}\n'
        result = '{"name": "x of a", "dtype": "f32", "error": 0, "passed": true}\n'
        self.assertEqual(reading.unanswered(begin)["name"], "a")
        self.assertIsNone(reading.unanswered(begin + result))
        self.assertEqual(reading.unanswered(begin + result + begin)["name"], "a")
        self.assertIsNone(reading.unanswered(""))


def measured(**fields: object) -> dict[str, Any]:
    """A measurement as the results have it."""
    speed = fields.pop("speed", 1.0)
    about = {"rows": 2, "length": 2048, "quantization": "q4_k", "variant": "none", "date": "1", "kept_layers": 0}
    rates = {"tokens_per_second": {"median": speed, "min": speed, "max": speed}}
    return {**about, "layers": 32, **rates, "parts": {}, "profile": None, **fields}


def results_of(bench: list[dict[str, Any]], beside: list[dict[str, Any]], **peer: Any) -> dict[str, Any]:
    theirs = {"rows": 2, "length": 2048, "mode": "adapter-bf16"} | peer
    theirs["tokens_per_second"] = dict.fromkeys(("median", "min", "max"), 100.0)
    about = {"date": "1", "command": "", "version": "", "remarks": []}
    return {
        "sample": False,
        "machine": dict.fromkeys(("gpu", "driver", "gpu_bytes", "cpu", "cores", "system")),
        "libraries": {},
        "parts": {"bench": {**about, "runs": bench}, "peer": {**about, "runs": [theirs], "ours": beside}},
    }


class Goals(unittest.TestCase):
    """Which measurement is judged."""

    def verdicts(self, results: dict[str, Any]) -> dict[str, tuple[bool | None, str, str]]:
        goals.judge(results)
        return {
            word: (each["met"], each["text"], each["why"])
            for each in results["goals"]
            for word in ("tokens/s", "peak memory", "GEMM peak")
            if word in each["goal"]
        }

    def test_the_one_within_the_peer_s_memory(self) -> None:
        peaks = {"gemm_peak_flops": 1000.0, "model_flops_per_token": 2.0}
        plain = measured(speed=120.0, peak_bytes=50, **peaks)
        auto = measured(variant="auto", kept_layers=32, speed=300.0, peak_bytes=90, **peaks)
        fitting = measured(variant="fitting", kept_layers=9, speed=200.0, peak_bytes=69, **peaks)
        results = results_of([plain, auto], [fitting, plain], peak_bytes=100)
        which = "kept 9 of 32 within 0.7x"
        verdicts = self.verdicts(results)
        self.assertEqual(verdicts["tokens/s"], (True, "2.00x", which))
        self.assertEqual(verdicts["peak memory"], (True, "0.69x in tensors", f"{which}; the higher ratio counts"))
        self.assertEqual(verdicts["GEMM peak"], (False, "40.0%", which))
        table = report.speed_table(results)
        for name in ("kept 0", which, "kept 32 of 32"):
            self.assertIn(f"| Equipoise q4_k, {name} |", table)
        without = self.verdicts(results_of([plain, auto], [plain], peak_bytes=100))
        self.assertEqual(without["tokens/s"], (False, "1.20x", "kept 0"))
        self.assertEqual(without["peak memory"][0], True)

    def test_only_measurements_of_the_peer_s_call(self) -> None:
        for date in ("0", "2"):
            other = measured(speed=900.0, date=date)
            verdicts = self.verdicts(results_of([other], [measured(speed=120.0)]))
            self.assertEqual(verdicts["tokens/s"][1], "1.20x")
            self.assertEqual(self.verdicts(results_of([other], []))["tokens/s"][0], None)

    def test_memory_for_the_fitting_one_is_a_share_of_the_smallest_peak(self) -> None:
        runs = [
            {"rows": 2, "length": 2048, "peak_bytes": 20 << 30},
            {"rows": 2, "length": 2048, "peak_bytes": 10 << 30},
            {"rows": 1, "length": 4096, "peak_bytes": 1 << 30},
        ]
        self.assertEqual(parts.fitting(runs), 7168)
        self.assertIsNone(parts.fitting([{"rows": 2, "length": 2048, "peak_bytes": None}]))


class Verdicts(unittest.TestCase):
    """What decides that a goal is met."""

    def test_the_worse_count_of_memory_is_held_against_the_peer(self) -> None:
        for ours, met in (((50, 60), True), ((50, 90), False), ((90, 50), False)):
            run = measured(peak_bytes=ours[0], device_bytes=ours[1])
            results = results_of([], [run], peak_bytes=100, device_bytes=100)
            found = list(goals.against_peer(results))[1]
            self.assertEqual((found["met"], found["value"]), (met, max(ours) / 100))

    def test_the_worse_count_of_memory_is_held_against_12_gb(self) -> None:
        high, low = 12.1e9, 11.9e9
        for ours, met in (((11e9, low), True), ((11e9, high), False), ((high, 11e9), False), ((11e9, None), True)):
            run = measured(rows=1, length=8192, peak_bytes=ours[0], device_bytes=ours[1])
            found = goals.long_goal(results_of([run], []))
            self.assertEqual((found["met"], found["value"]), (met, max(filter(None, ours))))

    def curve(self, *losses: float | None) -> list[dict[str, Any]]:
        return [{"step": i, "loss": loss, "cross_entropy": 1.0} for i, loss in enumerate(losses, 1)]

    def judged(self, *pairs: tuple[list[dict[str, Any]], list[dict[str, Any]]]) -> dict[str, Any]:
        """The verdict on quickstart with these curves, of two steps that were asked for."""
        about = {"recipe": "quickstart", "device": "cuda:0", "compute": "bf16"}
        runs = [{**about, **reading.compared(ours, cpu, 2), "curve": ours, "reference": cpu} for ours, cpu in pairs]
        return next(goals.losses({"parts": {"train": {"runs": runs, "model": None}}}))

    def test_a_curve_is_met_only_if_it_is_whole(self) -> None:
        whole, half, far = self.curve(2.0, 2.0), self.curve(2.0), self.curve(3.0)
        self.assertIs(self.judged((whole, whole))["met"], True)
        found = self.judged((half, whole))
        self.assertEqual((found["met"], found["why"]), (None, "not all steps were run"))
        self.assertIsNone(self.judged((whole, half))["met"])
        self.assertIs(self.judged((far, whole))["met"], False)

    def test_nan_in_a_curve_is_no_agreement(self) -> None:
        whole = self.curve(2.0, 2.0)
        for bad in (math.nan, math.inf, None):
            for pair in ((self.curve(2.0, bad), whole), (whole, self.curve(2.0, bad))):
                self.assertIs(self.judged(pair)["met"], False)
                self.assertIs(self.judged(pair, (whole, whole))["met"], False)

    def test_without_a_step_nothing_is_known(self) -> None:
        whole, far = self.curve(2.0, 2.0), self.curve(2.0, 3.0)
        found = self.judged(([], whole))
        self.assertEqual((found["met"], found["why"]), (None, "cuda:0 in bf16 ran no step"))
        self.assertEqual(self.judged((whole, []))["why"], "the CPU ran no step")
        found = self.judged((whole, whole), ([], whole))
        self.assertEqual((found["met"], found["why"]), (None, "cuda:0 in bf16 ran no step"))
        self.assertIs(self.judged((far, whole), ([], whole))["met"], False, "what is known to be wrong stays so")


class Processes(unittest.TestCase):
    """What is made of a process that has ended."""

    def test_a_peak_is_above_what_was_there_before(self) -> None:
        ended = machine.Ended(baseline=100, samples=[(1.0, 150), (2.0, 400), (3.0, 250)])
        self.assertEqual((ended.peak(), ended.peak(2.5), ended.peak(0, 1), ended.peak(4)), (300, 150, 50, None))
        self.assertIsNone(machine.Ended(samples=[(1.0, 150)]).peak())

    def test_the_reason_is_the_last_message(self) -> None:
        lines = ["warning: old", "  x no such file", "  help: look again", "    a line of it"]
        self.assertEqual(machine.Ended(status=1, stderr=lines).why(), "ended with exit code 1: no such file")
        cross = ["  \N{MULTIPLICATION SIGN} it broke", "  help: none"]
        self.assertEqual(machine.Ended(status=1, stderr=cross).why(), "ended with exit code 1: it broke")
        late = machine.Ended(status=-9, timed_out=True, seconds=5, stderr=lines)
        self.assertEqual(late.why(), "stopped after 5 s, its time limit")

    def test_another_kernel_s_release_is_the_same_machine(self) -> None:
        here = {"gpu": "G", "driver": "1", "gpu_bytes": 1, "cpu": "C", "cores": 2, "system": "Linux 1"}
        self.assertTrue(machine.same({**here, "system": "Linux 2"}, here))
        for name in ("gpu", "driver", "cpu", "cores"):
            self.assertFalse(machine.same({**here, name: "other"}, here))


def piece(*values: object) -> dict[str, object]:
    return dict(zip(("part", "piece", "kind", "count", "seconds", "flop", "bytes"), values, strict=True))


class Pieces(unittest.TestCase):
    """The tables of a profile."""

    RUN = {
        "gemm_peak_flops": 800e12,
        "copy_peak_bytes_per_second": 3e12,
        "profile": {
            "step_seconds": 0.4,
            "pieces": [
                piece("r", "rms", "kernel", 65, 0.01, 4e12, 15e9),
                piece("f", "small", "product", 8, 0.05, 20e12, 3e9),
                piece("f", "large", "product", 64, 0.2, 120e12, 9e9),
                piece("c", "copy", "copy", 2, 0.04, None, 60e9),
            ],
        },
    }

    def test_rates_shares_order_and_sums(self) -> None:
        products, kernels = pieces.split(self.RUN)
        self.assertEqual(
            pieces.rows(products, self.RUN),
            [
                ["large", "f", "64", "200.00", "600.0", "75.0%", "45", "1.5%"],
                ["small", "f", "8", "50.00", "400.0", "50.0%", "60", "2.0%"],
                ["all of these", "", "72", "250.00", "560.0", "70.0%", "48", "1.6%"],
            ],
        )
        self.assertEqual(
            pieces.rows(kernels, self.RUN),
            [
                ["copy", "c", "2", "40.00", "–", "–", "1500", "50.0%"],
                ["rms", "r", "65", "10.00", "400.0", "50.0%", "1500", "50.0%"],
                ["all of these", "", "67", "50.00", "–", "–", "1500", "50.0%"],
            ],
        )
        self.assertEqual(pieces.rest(self.RUN), "Between pieces: 100.00 ms of a step of 400.00 ms (25.0%).\n")

    def test_the_headline_s_profile_else_the_glance_s(self) -> None:
        results = results_of([], [])
        results["parts"]["glance"] = {"runs": [measured(**self.RUN)], "remarks": []}
        (products, text), (kernels, more) = report.pieces_tables(results)
        self.assertEqual((products, kernels), ("Products by shape", "Kernels"))
        self.assertIn("of the glance", text)
        self.assertIn("| large | f | 64 | 200.00 | 600.0 | 75.0% |", text)
        self.assertIn("Between pieces: 100.00 ms", more)
        own = self.RUN | {"gemm_peak_flops": 1200e12}
        results["parts"]["bench"]["runs"] = [measured(**own)]
        ((_, text), _) = report.pieces_tables(results)
        self.assertIn("kept 0", text)
        self.assertIn("| large | f | 64 | 200.00 | 600.0 | 50.0% |", text)

    def test_a_glance_is_no_measurement(self) -> None:
        results = results_of([], [])
        results["parts"]["glance"] = {"runs": [measured(speed=9.0)], "remarks": []}
        self.assertEqual(goals.ours(results), [])


class Limits(unittest.TestCase):
    """The times of a call."""

    def test_the_parts_of_each_call_fit_in_it(self) -> None:
        for names, limit in ((("check", "glance"), 200), (("bench", "peer", "train"), 420), (commands.DEFAULT, 570)):
            self.assertLessEqual(sum(commands.LIMITS[name] for name in names), limit)
        self.assertLess(sum(commands.THEMES.values()), commands.LIMITS["check"])
        for limit in commands.THEMES.values():
            self.assertLess(commands.each_limit(limit), limit)


class Programs(unittest.TestCase):
    """What registers.py compiles."""

    def test_each_file_of_kernels_is_in_one_program(self) -> None:
        files = sorted(f"kernels/{path.name}" for path in (registers.CUDA / "kernels").glob("*.cu"))
        self.assertEqual(sorted(program.parts[-1] for program in registers.programs()), files)


if __name__ == "__main__":
    unittest.main()
