//! Attention: causal, several sequences in a batch, queries that share keys, heads of several widths; and with a cache.

use super::Judge;
use crate::support::random_weights::random;
use equipoise::error::Result;
use equipoise::ops::attention::{Attention, AttentionOutput, Heads, attention, attention_backward};
use equipoise::ops::cuda::{Cuda, KeyValueMemory};
use equipoise::ops::{AttentionShape, Pool, Sequence};

pub fn compare(judge: &mut Judge<'_>) -> Result<()> {
    let shape = AttentionShape::new;
    let cases: Vec<(AttentionShape, &[usize])> = judge.choose(
        vec![
            (shape(4, 2, 64), &[37, 1, 130]),
            (shape(3, 1, 24), &[33, 7]),
            (shape(2, 2, 128), &[65, 20]),
            (shape(1, 1, 160), &[19]),
        ],
        vec![
            (shape(32, 8, 128), &[2047]),
            (shape(32, 8, 128), &[513, 1, 1025, 130]),
            (shape(9, 3, 64), &[2048, 1023, 1, 129]),
            (shape(6, 2, 80), &[513, 701]),
            (shape(3, 1, 24), &[333, 5]),
            (shape(2, 1, 256), &[1025]),
        ],
    );
    for (shape, lengths) in cases.into_iter().chain(limited(judge)) {
        compared(judge, shape, lengths)?;
        continued(judge, shape, lengths[0])?;
    }
    unseen(judge)
}

/// Windows of one key, of less than a tile, of several and of more than there are; caps that most scores lie above.
fn limited(judge: &Judge<'_>) -> Vec<(AttentionShape, &'static [usize])> {
    let shape = |heads, kv_heads, head_dim, window, softcap| {
        let plain = AttentionShape::new(heads, kv_heads, head_dim);
        AttentionShape { window, softcap, scale: 0.7 * plain.scale, ..plain }
    };
    judge.choose(
        vec![
            (shape(2, 1, 64, Some(70), None), &[37, 1, 150]),
            (shape(2, 1, 64, Some(9), Some(0.6)), &[130, 5]),
            (shape(3, 1, 24, Some(1), None), &[33, 7]),
            (shape(2, 2, 128, None, Some(0.6)), &[40, 20]),
            (shape(2, 1, 128, Some(21), Some(0.6)), &[97]),
            (shape(1, 1, 160, Some(6), Some(0.6)), &[41]),
            (shape(1, 1, 160, Some(1000), None), &[19]),
        ],
        vec![
            (shape(32, 8, 128, Some(512), None), &[2047, 130]),
            (shape(8, 4, 256, Some(300), Some(50.0)), &[1025, 7]),
            (shape(8, 4, 256, None, Some(0.6)), &[513]),
            (shape(9, 3, 64, Some(1), None), &[333, 5]),
            (shape(4, 2, 64, Some(33), Some(0.6)), &[1500, 1, 129]),
            (shape(6, 2, 80, Some(4096), Some(0.6)), &[513, 701]),
        ],
    )
}

fn about(shape: AttentionShape) -> String {
    let limits = [shape.window.map(|keys| format!(", window {keys}")), shape.softcap.map(|cap| format!(", cap {cap}"))];
    let limits: String = limits.into_iter().flatten().collect();
    format!("{} of {} heads of {}{limits}", shape.kv_heads, shape.heads, shape.head_dim)
}

/// Rows of queries, keys and values; scores are so spread that a softmax over them is far from even.
fn inputs(tokens: usize, shape: AttentionShape) -> Vec<f32> {
    random(tokens * shape.width(), 1, 2.0)
}

fn of<'a>(shape: AttentionShape, qkv: &'a [f32], sequences: &'a [Sequence]) -> Attention<'a, f32> {
    let (queries, keys, stride) = (shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim, shape.width());
    Attention {
        shape,
        q: Heads { data: qkv, stride },
        k: Heads { data: &qkv[queries..], stride },
        v: Heads { data: &qkv[queries + keys..], stride },
        sequences,
        capacity: 0,
    }
}

fn forward(shape: AttentionShape, qkv: &[f32], sequences: &[Sequence]) -> (Vec<f32>, Vec<f32>) {
    let tokens = qkv.len() / shape.width();
    let (mut out, mut log_sums) = (vec![0f32; tokens * shape.heads * shape.head_dim], vec![0f32; tokens * shape.heads]);
    attention(&of(shape, qkv, sequences), &mut out, &mut log_sums, &Pool::default());
    (out, log_sums)
}

fn compared(judge: &mut Judge<'_>, shape: AttentionShape, lengths: &[usize]) -> Result<()> {
    let mut sequences: Vec<Sequence> = Vec::new();
    for &length in lengths {
        let start = sequences.last().map_or(0, |last| last.queries.end);
        sequences.push(Sequence { queries: start..start + length, keys: start..start + length });
    }
    let tokens = lengths.iter().sum();
    let (qkv, width) = (inputs(tokens, shape), shape.heads * shape.head_dim);
    let d_out = random(tokens * width, 2, 1.0);
    let (out, log_sums) = forward(shape, &qkv, &sequences);
    let mut d_qkv = vec![0f32; qkv.len()];
    let output = AttentionOutput { out: &out, log_sums: &log_sums, gradient: &d_out };
    attention_backward(&of(shape, &qkv, &sequences), output, None, &mut d_qkv, &Pool::default());
    // The gradients of queries that see one key, and of those keys, are rounding and nothing else: they are seen beside a one.
    let beside = if shape.window == Some(1) { 1.0 } else { 0.0 };
    let raised = |gradient: Vec<f32>| gradient.into_iter().map(|x| x + beside).collect::<Vec<f32>>();
    let [dq, dk, dv] = parts(shape, &d_qkv).map(raised);

    let names = ["", ": log-sums", " backward: queries", " backward: keys", " backward: values"];
    let names = names.map(|name| format!("attention{name}"));
    let expected = [out, log_sums, dq, dk, dv];
    judge.each(names.each_ref().map(String::as_str), &format!("{}, {lengths:?}", about(shape)), &expected, |cuda| {
        let (qkv, d_out) = (cuda.upload(&qkv, shape.width())?, cuda.upload(&d_out, width)?);
        let tiles = cuda.tiles(&sequences, shape.head_dim)?;
        let (out, log_sums) = cuda.attention(shape, &qkv, &tiles, None)?;
        let d_qkv = cuda.attention_backward(shape, &qkv, &tiles, (&out, &log_sums), &d_out)?;
        let [dq, dk, dv] = parts(shape, &cuda.download(&d_qkv)?).map(raised);
        Ok([cuda.download(&out)?, log_sums.read::<f32>(0, tokens * shape.heads)?, dq, dk, dv])
    })
}

/// Columns of queries, keys and values by themselves: a small gradient must not hide behind a large one.
fn parts(shape: AttentionShape, rows: &[f32]) -> [Vec<f32>; 3] {
    let (queries, keys) = (shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim);
    [0..queries, queries..queries + keys, queries + keys..shape.width()]
        .map(|range| rows.chunks_exact(shape.width()).flat_map(|row| &row[range.clone()]).copied().collect())
}

/// A text in three pieces, each of which sees the keys and values of those before.
fn continued(judge: &mut Judge<'_>, shape: AttentionShape, tokens: usize) -> Result<()> {
    let (qkv, stride) = (inputs(tokens, shape), shape.width());
    let whole = Sequence { queries: 0..tokens, keys: 0..tokens };
    let expected = [forward(shape, &qkv, &[whole]).0];
    let pieces = [tokens / 2, tokens - tokens / 2 - 1, 1];
    judge.each(["attention with a cache"], &format!("{}, {pieces:?}", about(shape)), &expected, |cuda: &Cuda| {
        let (cache, mut before, mut all) = (KeyValueMemory::new(1), 0, Vec::new());
        for piece in pieces {
            let rows = cuda.upload(&qkv[before * stride..][..piece * stride], stride)?;
            let sequence = Sequence { queries: 0..piece, keys: 0..before + piece };
            let tiles = cuda.tiles(&[sequence], shape.head_dim)?;
            let (out, _) = cuda.attention(shape, &rows, &tiles, Some((&cache, 0)))?;
            all.extend(cuda.download(&out)?);
            before += piece;
        }
        Ok([all])
    })
}

/// What no query sees is not read: in rows that are no numbers, where the tiles of others end.
fn unseen(judge: &mut Judge<'_>) -> Result<()> {
    let (tokens, bad) = (200, 96..121);
    let shape = AttentionShape { window: Some(8), ..AttentionShape::new(2, 1, 64) };
    let sequences = [Sequence { queries: 0..tokens, keys: 0..tokens }];
    let (stride, width) = (shape.width(), shape.heads * shape.head_dim);
    let (qkv, d_out) = (inputs(tokens, shape), random(tokens * width, 2, 1.0));
    let (out, log_sums) = forward(shape, &qkv, &sequences);
    let mut d_qkv = vec![0f32; qkv.len()];
    let output = AttentionOutput { out: &out, log_sums: &log_sums, gradient: &d_out };
    attention_backward(&of(shape, &qkv, &sequences), output, None, &mut d_qkv, &Pool::default());
    // Rows whose tiles end before the bad ones, or begin behind them.
    let good = |rows: &[f32], width: usize| [&rows[..64 * width], &rows[128 * width..]].concat();
    let spoilt = |rows: &[f32], width: usize| {
        let mut rows = rows.to_vec();
        rows[bad.start * width..bad.end * width].fill(f32::NAN);
        rows
    };
    let expected = [good(&out, width), good(&d_qkv, stride)];
    let names = ["attention beside what it does not see", "attention backward beside what it does not see"];
    judge.each(names, &about(shape), &expected, |cuda| {
        let (clean, qkv) = (cuda.upload(&qkv, stride)?, cuda.upload(&spoilt(&qkv, stride), stride)?);
        let d_out = cuda.upload(&spoilt(&d_out, width), width)?;
        let tiles = cuda.tiles(&sequences, shape.head_dim)?;
        let (out, _) = cuda.attention(shape, &qkv, &tiles, None)?;
        // What is left of the forward pass must be whole: the first rows that are not compared have queries of compared keys.
        let (whole, log_sums) = cuda.attention(shape, &clean, &tiles, None)?;
        let d_qkv = cuda.attention_backward(shape, &qkv, &tiles, (&whole, &log_sums), &d_out)?;
        Ok([good(&cuda.download(&out)?, width), good(&cuda.download(&d_qkv)?, stride)])
    })
}
