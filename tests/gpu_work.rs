//! What a step asks of a GPU, piece by piece: as much as its arithmetic needs, and no more; and what is said when a GPU breaks.

use crate::support::gpu_comparisons::{Comparison, Event, Extent, Theme, compare};
use crate::support::host_gpu::host_driver;
use crate::support::null_gpu::NullGpu;
use crate::support::watch::{Book, Fault, Kind, Line, Watch};
use crate::support::{ALL_LINEAR, TINY, Tiny, engine, lora, pack, rows};
use equipoise::device::driver::{Driver, Work};
use equipoise::device::{Device, Gpu};
use equipoise::nn::QuantizationType;
use equipoise::objectives::{self, ObjectiveConfig, ObjectiveKind};
use equipoise::ops::cuda::Cuda;
use equipoise::ops::{AttentionShape, Compute, Pool, Sequence};
use equipoise::train::backward::Engine;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

/// No width is that of the vocabulary, by which products of the head are known.
const MODEL: Tiny = Tiny { vocabulary: 101, ..TINY };
const RANK: usize = 3;
const LENGTHS: [usize; 2] = [30, 27];

fn watched(driver: Box<dyn Driver>, fault: Option<Fault>) -> (Gpu, Arc<Book>) {
    let book = Arc::<Book>::default();
    book.vocabulary.store(MODEL.vocabulary, Ordering::Relaxed);
    // Three modules share an input.
    book.ranks.store(3 * RANK, Ordering::Relaxed);
    let watch = Watch::new(driver, book.clone(), fault).with_buffers_apart(true);
    (Gpu::new(Box::new(watch)), book)
}

/// The pieces of a step in `bf16` on `q8_0` weights, its seconds, and how many tokens it learnt.
fn step(driver: Box<dyn Driver>, kept_layers: usize) -> (Vec<Line>, f64, u64) {
    let (gpu, book) = watched(driver, None);
    let device = Device::Gpu(gpu.clone());
    let model = MODEL.model_on(QuantizationType::Q8_0, &lora(RANK, &ALL_LINEAR), &device);
    let config = ObjectiveConfig { kind: ObjectiveKind::Sft, ..ObjectiveConfig::default() };
    let (objective, pool) = (objectives::build(&config), Pool::default());
    let base = engine(&model, &*objective, &pool);
    let engine = Engine { device: &device, compute: Compute::Bf16, kept_layers, ..base };
    let batches = [pack(&rows(&LENGTHS, MODEL.vocabulary))];
    book.set_open(true);
    let begun = Instant::now();
    let learnt = engine.sums(&batches, |_| None).unwrap().loss.supervised as u64;
    let seconds = begun.elapsed().as_secs_f64();
    book.set_open(false);
    (book.take(&gpu.take_marks().unwrap()), seconds, learnt)
}

fn sum(lines: &[Line], part: &str) -> Work {
    let of = lines.iter().filter(|line| line.part == part);
    of.fold(Work::default(), |sum, line| Work { bytes: sum.bytes + line.work.bytes, flop: sum.flop + line.work.flop })
}

/// Inputs and outputs of a layer's modules: queries, keys and values, then the others; `down` is the last.
fn modules(t: Tiny) -> [(usize, usize); 7] {
    let key = t.hidden / t.heads * t.kv_heads;
    let (h, i) = (t.hidden, t.intermediate);
    [(h, h), (h, key), (h, key), (h, h), (h, i), (h, i), (i, h)]
}

/// `of` over the modules of all layers, once for each pass that goes through them: forward, and backward to their inputs, which
/// nobody wants of the first layer's queries, keys and values.
fn both_passes(of: impl Fn((usize, usize)) -> usize) -> u64 {
    let all: usize = modules(MODEL).map(&of).iter().sum();
    let first: usize = modules(MODEL)[..3].iter().map(|&module| of(module)).sum();
    (2 * MODEL.layers * all - first) as u64
}

#[test]
fn a_step_asks_a_gpu_for_what_its_arithmetic_needs() {
    let (lines, _, learnt) = step(Box::<NullGpu>::default(), MODEL.layers);
    let tokens: usize = LENGTHS.iter().sum();
    let products = |(inputs, outputs): (usize, usize)| 2 * tokens * inputs * outputs;
    assert_eq!(sum(&lines, "frozen products").flop, both_passes(products));
    assert!(learnt > 0 && learnt < tokens as u64);
    assert_eq!(sum(&lines, "head products").flop, 2 * 2 * learnt * (MODEL.hidden * MODEL.vocabulary) as u64);
    // Through A and B, and back through both; and the gradients of both.
    let adapter = |(inputs, outputs): (usize, usize)| 2 * tokens * RANK * (inputs + outputs);
    let through = both_passes(adapter);
    let not_wanted: usize = modules(MODEL)[..3].iter().map(|(_, outputs)| 2 * tokens * RANK * outputs).sum();
    let gradients: usize = MODEL.layers * modules(MODEL).map(adapter).iter().sum::<usize>();
    // The input of the last module is not kept but made again from gate and up, and goes through A again.
    let again = MODEL.layers * 2 * tokens * RANK * MODEL.intermediate;
    assert_eq!(sum(&lines, "adapter products").flop, through + (not_wanted + gradients + again) as u64);
    // Two products over all pairs of a query and a key forward, seven backward.
    let pairs: usize = LENGTHS.iter().map(|n| n * (n + 1) / 2).sum();
    let of_pairs = (2 * pairs * MODEL.hidden * MODEL.layers) as u64;
    assert_eq!(sum(&lines, "attention").flop, 2 * of_pairs);
    assert_eq!(sum(&lines, "attention backward").flop, 7 * of_pairs);
    // Weights of 34 bytes for 32 numbers become bf16, once for each pass; the embeddings of the tokens and the head as well.
    let dequantized = |(inputs, outputs): (usize, usize)| inputs * outputs / 32 * (34 + 64);
    let others = (tokens + 2 * MODEL.vocabulary) * MODEL.hidden / 32 * (34 + 64);
    assert_eq!(sum(&lines, "dequantize").bytes, both_passes(dequantized) + others as u64);
}

/// A window leaves out pairs of a query and a key, of new tokens behind a cache too.
#[test]
fn a_window_leaves_out_the_work_of_what_is_not_seen() {
    let plain = AttentionShape::new(4, 2, 16);
    let sequences = [
        Sequence { queries: 0..7, keys: 0..7 },
        Sequence { queries: 7..9, keys: 7..20 },
        Sequence { queries: 9..10, keys: 20..21 },
    ];
    for window in [None, Some(1), Some(3), Some(8), Some(12), Some(100)] {
        let shape = AttentionShape { window, ..plain };
        let pairs: u64 = sequences
            .iter()
            .flat_map(|sequence| {
                let before = sequence.keys.len() - sequence.queries.len();
                (0..sequence.queries.len()).map(move |i| (before + i + 1).min(window.unwrap_or(usize::MAX)) as u64)
            })
            .sum();
        let (gpu, book) = watched(Box::<NullGpu>::default(), None);
        let cuda = Cuda { gpu: gpu.clone(), compute: Compute::Bf16, capacity: 0 };
        let (tiles, qkv) = (cuda.tiles(&sequences, shape.head_dim).unwrap(), cuda.zeros(21, shape.width()).unwrap());
        book.set_open(true);
        let (out, sums) = cuda.attention(shape, &qkv, &tiles, None).unwrap();
        cuda.attention_backward(shape, &qkv, &tiles, (&out, &sums), &out).unwrap();
        book.set_open(false);
        let lines = book.take(&gpu.take_marks().unwrap());
        let product = 2 * pairs * (shape.heads * shape.head_dim) as u64;
        assert_eq!(sum(&lines, "attention").flop, 2 * product, "{window:?}");
        assert_eq!(sum(&lines, "attention backward").flop, 7 * product, "{window:?}");
    }
}

#[test]
fn layers_that_are_computed_again_cost_all_but_their_last_product() {
    let frozen = |kept| sum(&step(Box::<NullGpu>::default(), kept).0, "frozen products").flop;
    let tokens: usize = LENGTHS.iter().sum();
    let again: usize = modules(MODEL)[..6].iter().map(|(inputs, outputs)| 2 * tokens * inputs * outputs).sum();
    for layers in 0..MODEL.layers {
        assert_eq!(frozen(layers) - frozen(MODEL.layers), ((MODEL.layers - layers) * again) as u64);
    }
}

#[test]
fn pieces_of_work_are_timed_where_they_run() {
    let Some((driver, _)) = host_driver() else { return };
    let (lines, seconds, _) = step(driver, MODEL.layers);
    let (counted, _, _) = step(Box::<NullGpu>::default(), MODEL.layers);
    let shown = |lines: &[Line]| -> Vec<_> {
        lines.iter().map(|line| (line.kind.name(), line.name.clone(), line.count, line.work)).collect()
    };
    assert_eq!(shown(&lines), shown(&counted), "the same work, whoever does it");
    assert!(lines.iter().filter(|line| line.kind != Kind::Copy).all(|line| line.seconds > 0.0), "{lines:?}");
    let timed: f64 = lines.iter().map(|line| line.seconds).sum();
    assert!(timed > 0.1 * seconds && timed <= seconds, "{timed} s of {seconds} s");
}

/// After a fault that takes the GPU away, what was compared before stays, the fault has its place, and nothing follows.
#[test]
fn a_gpu_that_breaks_ends_its_theme_with_the_reason() {
    let Some((driver, _)) = host_driver() else { return };
    let fault = Fault { kernel: "swiglu_bf16".into(), hangs: false };
    let (gpu, book) = watched(driver, Some(fault));
    let (mut begun, mut ended): (Vec<String>, Vec<Comparison>) = (Vec::new(), Vec::new());
    let mut on_event = |event| match event {
        Event::Begin(name, dtype) => begun.push(format!("{name} {dtype}")),
        Event::Ended(each) => ended.push(each),
    };
    let whole = compare(&Device::Gpu(gpu), &[Theme::Rows, Theme::Linear], &mut on_event, Extent::Small);
    assert!(!whole, "not all was compared");
    assert!(ended.iter().filter(|each| each.passed()).count() > 20, "what came before stays");
    let last = ended.last().unwrap();
    assert!(begun.last().unwrap().starts_with("swiglu") && begun.last().unwrap().ends_with("bf16"), "{begun:?}");
    assert!(last.name.starts_with("swiglu") && !last.passed(), "{last:?}");
    assert!(last.failure.as_ref().unwrap().contains("CUDA_ERROR_ILLEGAL_ADDRESS"), "{last:?}");
    assert!(book.last().starts_with("swiglu_bf16"), "{}", book.last());
    assert!(ended.iter().all(|each| !each.name.starts_with("linear")));
}
