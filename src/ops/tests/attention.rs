//! Attention with rotary positions, as a layer calls it: queries, keys and values side by side.

use super::*;
use crate::ops::attention::{Attention, AttentionOutput, Heads, attention, attention_backward};
use crate::ops::{AttentionShape, RopeTable, Sequence, composed};

struct Case {
    shape: AttentionShape,
    sequences: Vec<Sequence>,
    rope: Option<RopeTable>,
    tokens: usize,
}

impl Case {
    fn new((heads, kv_heads, head_dim): (usize, usize, usize), lengths: &[usize], rope: bool) -> Self {
        let (mut sequences, mut positions, mut start) = (Vec::new(), Vec::new(), 0);
        for &length in lengths {
            sequences.push(Sequence { queries: start..start + length, keys: start..start + length });
            positions.extend(0..length as u32);
            start += length;
        }
        let frequencies: Vec<f32> = (0..head_dim / 2).map(|i| 0.7f32.powi(i as i32)).collect();
        let rope = rope.then(|| RopeTable::new(&positions, &frequencies, 1.0));
        Self { shape: AttentionShape::new(heads, kv_heads, head_dim), sequences, rope, tokens: start }
    }

    /// Numbers of the query heads, of the key heads, and of a row.
    fn widths(&self) -> (usize, usize, usize) {
        let AttentionShape { heads, kv_heads, head_dim, .. } = self.shape;
        (heads * head_dim, kv_heads * head_dim, (heads + 2 * kv_heads) * head_dim)
    }

    fn inputs(&self, scale: f32) -> Vec<Vec<f32>> {
        vec![random(self.tokens * self.widths().2, 9).into_iter().map(|x| x * scale).collect()]
    }

    fn rotated<E: Element>(&self, input: &[f32]) -> Vec<E> {
        let mut qkv = rounded::<E>(input);
        if let Some(rope) = &self.rope {
            rope.rotate(&mut qkv, self.shape);
        }
        qkv
    }

    fn of<'a, E>(&'a self, qkv: &'a [E]) -> Attention<'a, E> {
        let (queries, keys, stride) = self.widths();
        Attention {
            shape: self.shape,
            q: Heads { data: qkv, stride },
            k: Heads { data: &qkv[queries..], stride },
            v: Heads { data: &qkv[queries + keys..], stride },
            sequences: &self.sequences,
            capacity: 0,
        }
    }

    fn pool(&self) -> crate::ops::Pool {
        let (queries, keys, _) = self.widths();
        let pack = (2 * self.tokens * keys).next_power_of_two();
        soiled_pool(&[self.tokens.next_multiple_of(64) * queries, pack, pack / 2, 256 * self.shape.head_dim])
    }

    fn run<E: Element>(&self, qkv: &[E]) -> (Vec<E>, Vec<f32>) {
        let mut out = soiled::<E>(self.tokens * self.widths().0);
        let mut log_sums = soiled::<f32>(self.tokens * self.shape.heads);
        attention(&self.of(qkv), &mut out, &mut log_sums, &self.pool());
        (out, log_sums)
    }

    /// With a cap, and a window.
    fn under(mut self, softcap: Option<f32>, window: Option<usize>) -> Self {
        (self.shape.softcap, self.shape.window) = (softcap, window);
        self
    }

    /// 0 where a query sees a key.
    fn mask(&self) -> Tensor {
        let t = self.tokens;
        let mut mask = vec![f32::NEG_INFINITY; t * t];
        for sequence in &self.sequences {
            for query in sequence.queries.clone() {
                let left = self.shape.window.map_or(0, |window| (query + 1).saturating_sub(window));
                mask[query * t + sequence.keys.start.max(left)..=query * t + query].fill(0.0);
            }
        }
        Tensor::from_vec(mask, (1, 1, t, t), &Device::Cpu).unwrap()
    }
}

impl Operation for Case {
    fn forward<E: Element>(&self, inputs: &[Vec<f32>]) -> Vec<f32> {
        widened(&self.run(&self.rotated::<E>(&inputs[0])).0)
    }

    fn backward<E: Element>(&self, inputs: &[Vec<f32>], dy: &[f32]) -> Vec<Vec<f32>> {
        let qkv = self.rotated::<E>(&inputs[0]);
        let (out, log_sums) = self.run(&qkv);
        let gradient = rounded::<E>(dy);
        let output = AttentionOutput { out: &out, log_sums: &log_sums, gradient: &gradient };
        let mut d = soiled::<E>(qkv.len());
        attention_backward(&self.of(&qkv), output, self.rope.as_ref(), &mut d, &self.pool());
        vec![widened(&d)]
    }

    fn composed(&self, inputs: &[Tensor]) -> Tensor {
        let (queries, keys, stride) = self.widths();
        let qkv = inputs[0].reshape((1, self.tokens, stride)).unwrap();
        let part = |start, width| qkv.narrow(2, start, width).unwrap().contiguous().unwrap();
        let rotate = |x: Tensor| match &self.rope {
            Some(rope) => {
                let (cos, sin) = rope.tensors(1, self.tokens, &Device::Cpu).unwrap();
                composed::rope(&x, &cos, &sin, None, self.shape.head_dim).unwrap()
            }
            None => x,
        };
        let (q, k) = (rotate(part(0, queries)), rotate(part(queries, keys)));
        composed::attention(&q, &k, &part(queries + keys, keys), &self.mask(), self.shape).unwrap()
    }
}

#[test]
fn attention_is_right_forward_and_backward() {
    let lengths: [&[usize]; 7] = [&[1], &[6], &[3, 1, 47, 48, 49], &[70], &[63, 64, 65], &[200], &[197, 8, 100, 1]];
    for heads in [(4, 2, 8), (3, 3, 10), (4, 1, 16)] {
        for lengths in lengths {
            let case = Case::new(heads, lengths, true);
            check(&format!("attention {heads:?} of {lengths:?}"), &case, &case.inputs(1.0));
        }
    }
    // Heads of one tile of columns and of two, and no rotation.
    for (heads, rope) in [((2, 2, 64), true), ((3, 1, 80), true), ((9, 3, 48), false)] {
        let case = Case::new(heads, &[90, 13, 203], rope);
        check(&format!("attention {heads:?}"), &case, &case.inputs(1.0));
    }
}

/// Scores so large that the maximum of a row moves from block to block, and most probabilities are zero.
#[test]
fn attention_is_right_where_it_is_sharp() {
    let case = Case::new((2, 1, 16), &[450, 30], true);
    let inputs = case.inputs(6.0);
    let y = case.forward::<f32>(&inputs);
    let dy = random(y.len(), 99);
    let gradients = case.backward::<f32>(&inputs, &dy);
    against_candle("sharp attention", &case, &inputs, (&y, &dy, &gradients));
    let rounded = case.backward::<bf16>(&inputs, &dy);
    assert!(rounded[0].iter().chain(&case.forward::<bf16>(&inputs)).all(|x| x.is_finite()));
}

/// Generation: fewer queries than keys, one or several at a time.
#[test]
fn the_last_queries_alone_give_what_all_together_give() {
    fn last_rows<E: Element>(limit: f64) {
        for (keys, queries) in [(1, 1), (5, 1), (200, 1), (200, 7), (193, 66)] {
            let whole = Case::new((4, 2, 8), &[keys], true);
            let qkv = whole.rotated::<E>(&whole.inputs(1.0)[0]);
            let (all, all_sums) = whole.run(&qkv);
            let (width, _, stride) = whole.widths();
            let first = keys - queries;
            let last = Case {
                sequences: vec![Sequence { queries: 0..queries, keys: 0..keys }],
                tokens: queries,
                ..Case::new((4, 2, 8), &[keys], true)
            };
            let mut out = soiled::<E>(queries * width);
            let mut sums = soiled::<f32>(queries * 4);
            let of = Attention { q: Heads { data: &qkv[first * stride..], stride }, ..last.of(&qkv) };
            attention(&of, &mut out, &mut sums, &last.pool());
            close("the last queries", &widened(&out), &widened(&all[first * width..]), limit);
            close("their log-sum-exps", &sums, &all_sums[first * 4..], limit);
        }
    }
    last_rows::<f32>(1e-6);
    last_rows::<bf16>(1e-2);
}

#[test]
fn a_sequence_does_not_see_its_neighbours() {
    fn alone<E: Element>() {
        let heads = (4, 2, 8);
        let both = Case::new(heads, &[53, 70], true);
        let qkv = both.rotated::<E>(&both.inputs(1.0)[0]);
        let (out, _) = both.run(&qkv);
        let (width, _, stride) = both.widths();
        let (first, second) = qkv.split_at(53 * stride);
        for (length, qkv, expected) in [(53, first, &out[..53 * width]), (70, second, &out[53 * width..])] {
            assert_eq!(widened(&Case::new(heads, &[length], true).run(qkv).0), widened(expected));
        }
    }
    alone::<f32>();
    alone::<bf16>();
}

const SHAPES: [(usize, usize, usize); 3] = [(4, 2, 8), (3, 3, 10), (2, 1, 80)];

/// Windows of one key, less than a tile, about a tile, about a block, and more than there is.
const WINDOWS: [usize; 11] = [1, 2, 7, 8, 9, 47, 48, 49, 100, 290, 5000];

#[test]
fn a_window_is_right_forward_and_backward() {
    let lengths: [&[usize]; 4] = [&[1], &[3, 1, 47, 48, 49], &[63, 64, 65], &[197, 8, 100, 1]];
    for (i, window) in WINDOWS.into_iter().enumerate() {
        for lengths in lengths {
            let case = Case::new(SHAPES[i % 3], lengths, true).under(None, Some(window));
            check(&format!("a window of {window} in {lengths:?}"), &case, &case.inputs(1.0));
        }
        // Several blocks of keys, and of queries.
        let case = Case::new(SHAPES[i % 2], &[701], true).under(None, Some(window));
        check_bent(&format!("a window of {window}"), &case, &case.inputs(2.0));
    }
}

#[test]
fn a_cap_is_right_forward_and_backward() {
    for (i, cap) in [50.0, 10.0, 20.0].into_iter().enumerate() {
        for (lengths, window) in [(&[6, 70][..], None), (&[203, 90], None), (&[203, 90], Some(31))] {
            let mut case = Case::new(SHAPES[i], lengths, true).under(Some(cap), window);
            case.shape.scale *= 1.2;
            check(&format!("a cap of {cap} in {lengths:?}, window {window:?}"), &case, &case.inputs(1.0));
            let case = case.under(Some(cap / 30.0), window);
            check_bent(&format!("a cap of {cap} / 30 in {lengths:?}, window {window:?}"), &case, &case.inputs(1.0));
        }
    }
}

/// Scores far above the cap, of which no slope is left, and scores so large that without one a row has one key.
#[test]
fn a_cap_is_right_where_scores_are_far_above_it() {
    for (cap, window) in [(50.0, None), (20.0, None), (20.0, Some(60))] {
        let mut case = Case::new((2, 1, 16), &[450, 30], true).under(Some(cap), window);
        case.shape.scale = 1.0;
        let inputs = case.inputs(6.0);
        let y = case.forward::<f32>(&inputs);
        let dy = random(y.len(), 99);
        let gradients = case.backward::<f32>(&inputs, &dy);
        against_candle(&format!("a cap of {cap}"), &case, &inputs, (&y, &dy, &gradients));
        let rounded = case.backward::<bf16>(&inputs, &dy);
        assert!(rounded[0].iter().chain(&case.forward::<bf16>(&inputs)).all(|x| x.is_finite()));
    }
}

/// A window that holds the sequence, and a cap far above all scores, are none: the former to the bit.
#[test]
fn a_window_as_long_as_the_sequence_changes_no_bit() {
    fn of<E: Element>() {
        let plain = || Case::new((4, 2, 8), &[301, 40], true);
        let inputs = plain().inputs(3.0);
        let dy = random(341 * 4 * 8, 99);
        let (y, d) = (plain().forward::<E>(&inputs), plain().backward::<E>(&inputs, &dy));
        for window in [301, 302, usize::MAX] {
            let case = plain().under(None, Some(window));
            assert_eq!(case.forward::<E>(&inputs), y, "a window of {window}");
            assert_eq!(case.backward::<E>(&inputs, &dy), d, "a window of {window}");
        }
        assert_ne!(plain().under(None, Some(300)).forward::<E>(&inputs), y);
        let capped = plain().under(Some(1e5), None);
        close("a cap of 1e5", &capped.forward::<E>(&inputs), &y, 1e-2);
    }
    of::<f32>();
    of::<bf16>();
}

/// A query under a window has what it would have if the keys left of it were not there: whatever they are, NaN too.
#[test]
fn what_lies_left_of_a_window_is_not_read() {
    fn of<E: Element>() {
        for window in [1, 5, 48, 100] {
            let case = Case::new((4, 2, 8), &[400], false).under(Some(30.0), Some(window));
            let (queries, _, stride) = case.widths();
            let (first, input) = (200, case.inputs(1.0).remove(0));
            let mut qkv = rounded::<E>(&input);
            let (expected, expected_sums) = case.run(&qkv);
            // What stands in other tiles of the keys than those of the window of query 200.
            let soiled = (first + 1 - window) / 48 * 48;
            for row in qkv.chunks_exact_mut(stride).take(soiled) {
                row[queries..].fill(E::from_f32(f32::NAN));
            }
            let (out, sums) = case.run(&qkv);
            let all = |x: &[E]| widened(&x[first * queries..]);
            assert_eq!(all(&out), all(&expected));
            assert_eq!(sums[first * 4..], expected_sums[first * 4..]);
        }
    }
    of::<f32>();
    of::<bf16>();
}

/// Generation under a window and a cap: fewer queries than keys.
#[test]
fn the_last_queries_alone_give_what_all_give_under_a_window() {
    fn of<E: Element>(limit: f64) {
        for window in WINDOWS {
            for (keys, queries) in [(1, 1), (5, 1), (200, 1), (200, 7), (193, 66), (900, 3)] {
                let case = || Case::new((4, 2, 8), &[keys], true).under(Some(20.0), Some(window));
                let whole = case();
                let qkv = whole.rotated::<E>(&whole.inputs(1.0)[0]);
                let (all, all_sums) = whole.run(&qkv);
                let (width, _, stride) = whole.widths();
                let first = keys - queries;
                let sequences = vec![Sequence { queries: 0..queries, keys: 0..keys }];
                let last = Case { sequences, tokens: queries, ..case() };
                let (mut out, mut sums) = (soiled::<E>(queries * width), soiled::<f32>(queries * 4));
                let of = Attention { q: Heads { data: &qkv[first * stride..], stride }, ..last.of(&qkv) };
                attention(&of, &mut out, &mut sums, &last.pool());
                close("the last queries", &widened(&out), &widened(&all[first * width..]), limit);
                close("their log-sum-exps", &sums, &all_sums[first * 4..], limit);
            }
        }
    }
    of::<f32>(1e-6);
    of::<bf16>(1e-2);
}
