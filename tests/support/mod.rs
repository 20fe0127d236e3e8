//! What several themes need: golden files, tiny random models, batches.

pub mod gpu_comparisons;
pub mod host_gpu;
pub mod null_gpu;
pub mod random_weights;
/// The library's own stand-in for the Hub.
#[path = "../../src/hub/stand_in.rs"]
pub mod stand_in;
pub mod stored_tensors;
pub mod watch;
pub mod workplace;

use candle_core::quantized::GgmlDType;
use candle_core::{DType, Device as Place, Tensor};
use equipoise::data::{Batch, IGNORED, Sequence};
use equipoise::device::Device;
use equipoise::models::{self, Model};
use equipoise::nn::{LoraConfig, QuantizationConfig, QuantizationType, TargetModules};
use equipoise::objectives::{self, Objective, ObjectiveConfig, ObjectiveKind, TokenWeighting};
use equipoise::ops::{Compute, Held, Ledger, Pool};
use equipoise::rng::Rng;
use equipoise::train::backward::{Engine, dropout_keys};
use equipoise::weights::Base;
use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// A file of `tests/golden`.
pub fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

/// A file of the larger goldens and models, which are not in the repository: in `EQUIPOISE_SHARED`, or `../shared`.
/// Where they are not, the test says so and passes.
#[expect(clippy::print_stderr, reason = "what was skipped must be seen")]
pub fn shared(name: &str) -> Option<PathBuf> {
    let folder = std::env::var_os("EQUIPOISE_SHARED")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared"), PathBuf::from);
    let path = folder.join(name);
    if path.exists() {
        return Some(path);
    }
    eprintln!("skipped: {name} is not there; set EQUIPOISE_SHARED to the folder that holds it");
    None
}

pub fn json(path: &Path) -> serde_json::Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

pub fn tensors(path: &Path) -> HashMap<String, Tensor> {
    candle_core::safetensors::load(path, &Place::Cpu).unwrap()
}

pub fn floats(value: &serde_json::Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect()
}

/// The sizes of a tiny Llama.
#[derive(Clone, Copy)]
pub struct Tiny {
    pub hidden: usize,
    pub intermediate: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub layers: usize,
    pub vocabulary: usize,
}

/// Widths that every 32-block type fits.
pub const TINY: Tiny = Tiny { hidden: 64, intermediate: 96, heads: 4, kv_heads: 2, layers: 2, vocabulary: 96 };
/// Widths that every K-quant fits.
pub const WIDE: Tiny = Tiny { hidden: 256, intermediate: 256, heads: 4, kv_heads: 2, layers: 1, vocabulary: 64 };

/// Heads of 24, which fill no vector; queries in groups of three.
pub const ODD: Tiny = Tiny { hidden: 144, intermediate: 200, heads: 6, kv_heads: 2, layers: 3, vocabulary: 101 };

impl Tiny {
    /// Writes a random model as a Hugging Face folder, seeded.
    pub fn write(&self, folder: &Path) {
        let config = serde_json::json!({
            "model_type": "llama", "hidden_size": self.hidden, "intermediate_size": self.intermediate,
            "num_hidden_layers": self.layers, "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads, "vocab_size": self.vocabulary, "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0, "max_position_embeddings": 256, "tie_word_embeddings": false,
        });
        std::fs::write(folder.join("config.json"), config.to_string()).unwrap();
        let mut rng = Rng::new(11);
        let mut all = HashMap::new();
        let head_dim = self.hidden / self.heads;
        let (query, key) = (self.hidden, self.kv_heads * head_dim);
        let mut add = |name: String, shape: &[usize], scale: f64, offset: f64| {
            let numbers = (0..shape.iter().product::<usize>()).map(|_| (rng.uniform() * 2.0 - 1.0) * scale + offset);
            let tensor = Tensor::from_vec(numbers.map(|x| x as f32).collect(), shape, &Place::Cpu).unwrap();
            all.insert(name, tensor);
        };
        add("model.embed_tokens.weight".into(), &[self.vocabulary, self.hidden], 1.0, 0.0);
        add("lm_head.weight".into(), &[self.vocabulary, self.hidden], 0.3, 0.0);
        add("model.norm.weight".into(), &[self.hidden], 0.2, 1.0);
        for layer in 0..self.layers {
            let name = |part: &str| format!("model.layers.{layer}.{part}.weight");
            let scale = 1.7 / (self.hidden as f64).sqrt();
            for (part, rows, columns) in [
                ("self_attn.q_proj", query, self.hidden),
                ("self_attn.k_proj", key, self.hidden),
                ("self_attn.v_proj", key, self.hidden),
                ("self_attn.o_proj", self.hidden, query),
                ("mlp.gate_proj", self.intermediate, self.hidden),
                ("mlp.up_proj", self.intermediate, self.hidden),
                ("mlp.down_proj", self.hidden, self.intermediate),
            ] {
                add(name(part), &[rows, columns], scale, 0.0);
            }
            add(name("input_layernorm"), &[self.hidden], 0.2, 1.0);
            add(name("post_attention_layernorm"), &[self.hidden], 0.2, 1.0);
        }
        candle_core::safetensors::save(&all, folder.join("model.safetensors")).unwrap();
    }

    /// The random model with an adapter whose `B` is not zero, so that all gradients are alive.
    pub fn model(&self, kind: QuantizationType, lora: &LoraConfig) -> Model {
        self.model_on(kind, lora, &Device::Cpu)
    }

    /// The same model without weights.
    pub fn plan(&self, kind: QuantizationType, lora: &LoraConfig) -> Model {
        let folder = tempfile::tempdir().unwrap();
        self.write(folder.path());
        let base = Base::open(folder.path()).unwrap();
        models::load(&base, QuantizationConfig { kind }, Some(lora), 3, &Device::Cpu, true).unwrap()
    }

    /// The same model on a device.
    pub fn model_on(&self, kind: QuantizationType, lora: &LoraConfig, device: &Device) -> Model {
        let folder = tempfile::tempdir().unwrap();
        self.write(folder.path());
        let base = Base::open(folder.path()).unwrap();
        let quantization = QuantizationConfig { kind };
        let model = models::load(&base, quantization, Some(lora), 3, device, false).unwrap();
        stir(&model);
        model.params.upload().unwrap();
        model
    }
}

/// Sets every `B` to small random numbers.
pub fn stir(model: &Model) {
    let mut rng = Rng::new(5);
    for (_, variable) in model.params.iter().filter(|(name, _)| name.contains("lora_B")) {
        let numbers: Vec<f32> = (0..variable.elem_count()).map(|_| (rng.uniform() - 0.5) as f32 * 0.2).collect();
        variable.set(&Tensor::from_vec(numbers, variable.shape(), &Place::Cpu).unwrap()).unwrap();
    }
}

pub fn lora(r: usize, targets: &[&str]) -> LoraConfig {
    let names = targets.iter().map(|name| (*name).to_owned()).collect();
    LoraConfig { r, lora_alpha: 2.0 * r as f64, target_modules: TargetModules::Names(names), ..LoraConfig::default() }
}

pub const ALL_LINEAR: [&str; 7] = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"];

/// Random rows of the given lengths; the first third of each is prompt.
pub fn rows(lengths: &[usize], vocabulary: usize) -> Vec<Sequence> {
    let mut rng = Rng::new(17);
    let row = |&length: &usize| {
        let input_ids: Vec<u32> = (0..length).map(|_| rng.below(vocabulary as u64) as u32).collect();
        let labels = input_ids.iter().enumerate();
        let labels = labels.map(|(i, &id)| if i < length / 3 { IGNORED } else { i64::from(id) }).collect();
        Sequence::new(input_ids, labels)
    };
    lengths.iter().map(row).collect()
}

pub fn batch(rows: &[Sequence]) -> Batch {
    Batch::collate(&rows.iter().collect::<Vec<_>>(), 0)
}

/// A model on the CPU in `f32`, whatever the machine does fastest, with all activations kept.
pub fn engine<'a>(model: &'a Model, objective: &'a dyn Objective, pool: &'a Pool) -> Engine<'a> {
    Engine {
        lm: &model.lm,
        params: &model.params,
        objective,
        kept_layers: model.lm.layers.len(),
        compute: Compute::F32,
        offload: false,
        device: &Device::Cpu,
        pool,
        capacity: 0,
    }
}

/// Ragged rows; one has nothing supervised, two have weights of their own.
pub fn eight_rows() -> Vec<Sequence> {
    let mut rows = rows(&[7, 31, 12, 3, 25, 18, 9, 22], TINY.vocabulary);
    rows[6].labels.fill(IGNORED);
    (rows[1].weight, rows[4].weight) = (0.25, 3.0);
    rows
}

/// A batch of a width, the rows some tokens from its left edge.
pub fn pad(rows: &[Sequence], left: usize, width: usize) -> Batch {
    let size = rows.len() * width;
    let mut batch = Batch {
        rows: rows.len(),
        width,
        input_ids: vec![1; size],
        labels: vec![-100; size],
        position_ids: vec![0; size],
        segment_ids: vec![0; size],
        weights: rows.iter().map(|row| row.weight).collect(),
    };
    for (i, row) in rows.iter().enumerate() {
        place(&mut batch, i * width + left, row, 1);
    }
    batch
}

fn place(batch: &mut Batch, start: usize, row: &Sequence, segment: u32) {
    for t in 0..row.len() {
        batch.input_ids[start + t] = row.input_ids[t];
        batch.labels[start + t] = row.labels[t];
        batch.position_ids[start + t] = t as u32;
        batch.segment_ids[start + t] = segment;
    }
}

/// All rows in one, each a segment of its own.
pub fn pack(rows: &[Sequence]) -> Batch {
    let width = rows.iter().map(Sequence::len).sum();
    let mut batch = pad(&[], 0, width);
    batch.rows = 1;
    batch.input_ids = vec![0; width];
    batch.weights = rows.iter().map(|row| row.weight).collect();
    (batch.labels, batch.position_ids, batch.segment_ids) = (vec![-100; width], vec![0; width], vec![0; width]);
    let mut start = 0;
    for (i, row) in rows.iter().enumerate() {
        place(&mut batch, start, row, i as u32 + 1);
        start += row.len();
    }
    batch
}

/// All objectives, one of them twice.
pub fn objective_kinds() -> Vec<ObjectiveConfig> {
    use ObjectiveKind::{Asft, Bft, Dft, Eaft, Prob, Profit, Sft};
    let config = |kind| ObjectiveConfig { kind, group_size: 5, ..ObjectiveConfig::default() };
    let mut kinds: Vec<_> = [Sft, Dft, Bft, Prob].map(config).into();
    kinds.extend([
        ObjectiveConfig { token_weighting: TokenWeighting::GroupNormalized, ..config(Bft) },
        ObjectiveConfig { token_weight_floor: 0.1, normalize_weights: true, ..config(Bft) },
        ObjectiveConfig { k: Some(7), ..config(Eaft) },
        ObjectiveConfig { alpha: Some(0.7), ..config(Asft) },
        // Among the tiny models' probabilities, which are all small.
        ObjectiveConfig { threshold: Some(0.003), ..config(Profit) },
    ]);
    kinds
}

/// `‖a - b‖ / ‖b‖`
pub fn relative_distance(a: &Tensor, b: &Tensor) -> f64 {
    let norm = |t: &Tensor| -> f64 {
        let t = t.to_dtype(DType::F64).unwrap();
        t.sqr().unwrap().sum_all().unwrap().to_scalar::<f64>().unwrap().sqrt()
    };
    let (a, b) = (a.to_dtype(DType::F64).unwrap(), b.to_dtype(DType::F64).unwrap());
    norm(&(&a - &b).unwrap()) / norm(&b).max(1e-30)
}

/// The types that a floating-point base can be quantized to, with widths that fit each.
pub fn quantization_types() -> Vec<(QuantizationType, Tiny, GgmlDType)> {
    use QuantizationType as Q;
    vec![
        (Q::None, TINY, GgmlDType::F32),
        (Q::Q8_0, TINY, GgmlDType::Q8_0),
        (Q::Q4_0, TINY, GgmlDType::Q4_0),
        (Q::Q4_1, TINY, GgmlDType::Q4_1),
        (Q::Q5_0, TINY, GgmlDType::Q5_0),
        (Q::Q5_1, TINY, GgmlDType::Q5_1),
        (Q::Q2K, WIDE, GgmlDType::Q2K),
        (Q::Q3K, WIDE, GgmlDType::Q3K),
        (Q::Q4K, WIDE, GgmlDType::Q4K),
        (Q::Q5K, WIDE, GgmlDType::Q5K),
        (Q::Q6K, WIDE, GgmlDType::Q6K),
    ]
}

/// Fails unless a rehearsal of these batches, one a step, says to the byte what buffers they take: trained and validated, with and
/// without the adapter. On one thread: how many small buffers the tasks of several hold at once is chance.
#[track_caller]
pub fn assert_rehearsed(
    what: &str,
    [model, plan]: [&Model; 2],
    lora: &LoraConfig,
    batches: &[Batch],
    (compute, kept_layers, kind): (Compute, usize, ObjectiveKind),
) -> Held {
    let (pool, objective) = (Pool::default(), objectives::build(&ObjectiveConfig::of(kind)));
    let settings = |model| Engine { compute, kept_layers, capacity: 800, ..engine(model, &*objective, &pool) };
    let one_thread = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
    let held = one_thread.install(|| {
        let ledger = Ledger::default();
        let (engine, drops) = (settings(model), lora.lora_dropout > 0.0);
        for batch in batches {
            let keys = |_| drops.then(|| dropout_keys(batch, 1, &[0; 8]));
            engine.step(std::slice::from_ref(batch), keys).unwrap();
            engine.evaluate(batch).unwrap();
            engine.evaluate_base(batch).unwrap();
        }
        settings(plan).rehearse(batches, drops, &[], &ledger).unwrap();
        ledger.held()
    });
    assert_eq!((held.buffers, held.allocated), pool.allocated(), "{what}");
    held
}
