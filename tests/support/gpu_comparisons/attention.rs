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
    for (shape, lengths) in cases {
        compared(judge, shape, lengths)?;
        continued(judge, shape, lengths[0])?;
    }
    Ok(())
}

fn about(shape: AttentionShape) -> String {
    format!("{} of {} heads of {}", shape.kv_heads, shape.heads, shape.head_dim)
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
    let [dq, dk, dv] = parts(shape, &d_qkv);

    let names = ["", ": log-sums", " backward: queries", " backward: keys", " backward: values"];
    let names = names.map(|name| format!("attention{name}"));
    let expected = [out, log_sums, dq, dk, dv];
    judge.each(names.each_ref().map(String::as_str), &format!("{}, {lengths:?}", about(shape)), &expected, |cuda| {
        let (qkv, d_out) = (cuda.upload(&qkv, shape.width())?, cuda.upload(&d_out, width)?);
        let tiles = cuda.tiles(&sequences, shape.head_dim)?;
        let (out, log_sums) = cuda.attention(shape, &qkv, &tiles, None)?;
        let d_qkv = cuda.attention_backward(shape, &qkv, &tiles, (&out, &log_sums), &d_out)?;
        let [dq, dk, dv] = parts(shape, &cuda.download(&d_qkv)?);
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
