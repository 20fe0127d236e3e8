// Gates, the twins of ops/gate.rs.

__device__ __forceinline__ float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

// Activations g·s(u) with s the sigmoid: u of g, and the slope of u.
struct Silu {
    static __device__ __forceinline__ float inner(float gate) { return gate; }
    static __device__ __forceinline__ float slope(float) { return 1.0f; }
};

// The gelu that is made of tanh(z): (1 + tanh(z))/2 is the sigmoid of u = 2·z = 2·sqrt(2/π)·(g + 0.044715·g³). Beyond 10 the
// sigmoid is saturated, and the cube could overflow.
struct GeluTanh {
    static __device__ __forceinline__ float within(float gate) { return gate > 10.0f ? 10.0f : gate < -10.0f ? -10.0f : gate; }
    static __device__ __forceinline__ float inner(float gate) {
        float x = within(gate);
        return 1.5957691216057308f * x * (1.0f + 0.044715f * x * x);
    }
    static __device__ __forceinline__ float slope(float gate) {
        float x = within(gate);
        return 1.5957691216057308f * (1.0f + 0.134145f * x * x);
    }
};

// act(gate)∘up of rows [gate, up].
template <class Activation, class T, int N>
__device__ __forceinline__ void gate(Count<N> n, Activation, const T *gate_up, T *y, u32 width) {
    gate_up += 2 * row_start(width);
    y += row_start(width);
    each_of_part(n, width, [&](u32 at) {
        Floats<N> gate = load(n, gate_up + at), up = load(n, gate_up + width + at);
        for (int i = 0; i < N; i++) gate[i] = gate[i] * sigmoid(Activation::inner(gate[i])) * up[i];
        store(y + at, gate);
    });
}

// With s the sigmoid of u and g the gate: dy·up·s·(1 + g·(1 - s)·u') and dy·g·s, side by side. They may be written over gate and
// up.
template <class Activation, class T, int N>
__device__ __forceinline__ void gate_backward(Count<N> n, Activation, const T *gate_up, const T *dy, T *d_gate_up, u32 width) {
    gate_up += 2 * row_start(width);
    d_gate_up += 2 * row_start(width);
    dy += row_start(width);
    each_of_part(n, width, [&](u32 at) {
        Floats<N> gate = load(n, gate_up + at), up = load(n, gate_up + width + at), d = load(n, dy + at);
        for (int i = 0; i < N; i++) {
            float g = gate[i], s = sigmoid(Activation::inner(g));
            gate[i] = d[i] * up[i] * s * (1.0f + g * (1.0f - s) * Activation::slope(g));
            up[i] = d[i] * g * s;
        }
        store(d_gate_up + at, gate);
        store(d_gate_up + width + at, up);
    });
}
