// One chunk of one row: its tokens, their steps, what the memory reads, and the state after it (docs/rule.md, "The dual form").
//
// Shapes: n tokens of the chunk; d_in, d_out of a layer. Cells without a token are left out: they change nothing.
#pragma once

#include <algorithm>
#include <limits>
#include <vector>

#include "arguments.h"

namespace titans {

constexpr double NORM_EPS = 1e-5;

// M_t = b_t W + f_t S + sum_{s<=t} G[t, s] r_s and S_t = m_t S + sum_{s<=t} Q[t, s] r_s, for a layer's r_s, outer products of inputs and steps.
template <class T>
struct Coefficients {
    T *keep, *eta;   // 1 - alpha_t, eta_t: (n)
    T *b, *f, *m;    // (n)
    Matrix<T> G, Q;  // (n, n)

    Coefficients() = default;
    Coefficients(Arena<T>& arena, long cells)
        : keep(arena.numbers(cells)), eta(arena.numbers(cells)), b(arena.numbers(cells)), f(arena.numbers(cells)), m(arena.numbers(cells)),
          G(arena.matrix(cells, cells)), Q(arena.matrix(cells, cells)) {}

    // By the rule itself, a row from the one before: no logarithm, no division.
    void fill(long n) {
        for (long t = 0; t < n; ++t) {
            const T eta_t = t ? eta[t] : T(0), keep_t = t ? keep[t] : T(0);  // before the first token every row is empty
            const T* Q_before = t ? Q[t - 1] : Q[0];
            const T* G_before = t ? G[t - 1] : G[0];
            m[t] = eta[t] * (t ? m[t - 1] : T(1));
            b[t] = keep[t] * (t ? b[t - 1] : T(1));
            f[t] = (t ? keep[t] * f[t - 1] : T(0)) + m[t];
            if (t == 0) {
                std::memset(Q[0], 0, padded<T>(n) * sizeof(T));
                std::memset(G[0], 0, padded<T>(n) * sizeof(T));
            }
            for (long s = 0; s < padded<T>(n); s += LANES<T>) store(Q[t] + s, eta_t * load(Q_before + s));
            Q[t][t] += T(1);
            for (long s = 0; s < padded<T>(n); s += LANES<T>) store(G[t] + s, keep_t * load(G_before + s) + load(Q[t] + s));
        }
    }
};

// What the steps of a layer are made of. For token s: step = -theta clip g, g = gradient of the loss by the layer's output for the key.
template <class T>
struct Steps {
    Matrix<T> u, g, steps;             // inputs (n, d_in), gradients and steps (n, d_out)
    Matrix<T> slope, bend;             // hidden layers: act'(z), and act''(z) e once e, the gradient by act(z), is known; (n, d_out)
    T *theta, *clip, *u_square, *g_square;  // (n); squares of lengths
};

template <class T>
struct Chunk {
    long count = 0;           // n
    std::vector<long> cell;   // where on the grid its tokens stand
    Matrix<T> q, offset, normed;  // (n, D); normed: z_L with its mean taken off and its deviation brought to 1, or z_L where there is no norm
    T* inverse_std = nullptr;
    std::vector<Coefficients<T>> coefficients;
    std::vector<Steps<T>> layers;
    bool complete = false, restart = false;
};

template <class T>
struct State {
    std::vector<Matrix<T>> W, S;
};

// One row's walk over its chunks. A thread has one, and uses it for row after row.
template <class T>
class Walk {
  public:
    Walk(const Arguments& a, Arena<T>& arena) : a(a), D(a.widths[0]), C(a.cells), L(a.depth), activation(Activation(a.activation)), arena(arena) {
        long widest = D;
        for (long l = 0; l <= L; ++l) widest = std::max<long>(widest, a.widths[l]);
        z = arena.matrix(C, widest);
        e = arena.matrix(C, widest);
        lanes = arena.matrix(std::max(widest, C), C);
        slope = arena.numbers(D);
        for (long l = 0; l < L; ++l) {
            x.push_back(arena.matrix(C, in(l)));
            x_slope.push_back(arena.matrix(C, in(l)));
            x_W.push_back(arena.matrix(C, in(l)));
            x_S.push_back(arena.matrix(C, in(l)));
            scores.push_back(arena.matrix(C, C));
            mixed.push_back(arena.matrix(C, C));
            u_W.push_back(arena.matrix(C, in(l)));
            u_S.push_back(arena.matrix(C, in(l)));
        }
        if (a.rest) rest = make_layers(), point = make_layers();
    }

    long in(long l) const { return a.widths[l]; }
    long out(long l) const { return a.widths[l + 1]; }

    std::vector<Matrix<T>> make_layers() {
        std::vector<Matrix<T>> layers;
        for (long l = 0; l < L; ++l) layers.push_back(arena.matrix(in(l), out(l)));
        return layers;
    }

    State<T> make_state() { return {make_layers(), make_layers()}; }

    Chunk<T> make_chunk(bool keep) {
        Chunk<T> c;
        c.cell.reserve(C);
        c.q = arena.matrix(C, D), c.offset = arena.matrix(C, D), c.normed = arena.matrix(C, D);
        c.inverse_std = arena.numbers(C);
        for (long l = 0; l < L; ++l) {
            c.coefficients.emplace_back(arena, C);
            Steps<T> s;
            s.u = arena.matrix(C, in(l)), s.g = arena.matrix(C, out(l)), s.steps = arena.matrix(C, out(l));
            if (l + 1 < L) s.slope = arena.matrix(C, out(l));
            if (l + 1 < L && keep) s.bend = arena.matrix(C, out(l));
            s.theta = arena.numbers(C), s.clip = arena.numbers(C), s.u_square = arena.numbers(C), s.g_square = arena.numbers(C);
            c.layers.push_back(s);
        }
        return c;
    }

    void begin_row(long row) {
        r = row;
        copy_row(static_cast<const T*>(a.slope) + r * D, D, slope);
        for (long l = 0; l < long(rest.size()); ++l)
            copy_in(static_cast<const T*>(a.rest[l]) + r * in(l) * out(l), in(l), out(l), rest[l]);
    }

    // The memory's layers of which A are the part beside `rest`; they stay until the next call.
    const std::vector<Matrix<T>>& at(const std::vector<Matrix<T>>& A) {
        if (rest.empty()) return A;
        for (long l = 0; l < L; ++l)
            for (long i = 0; i < in(l); ++i)
                each<T>(padded<T>(out(l)), [&](long j) { store(point[l][i] + j, load(A[l][i] + j) + load(rest[l][i] + j)); });
        return point;
    }

    // Chunk number `n` of the row, from the grid.
    void gather(long n, Chunk<T>& c) {
        const long at = n * a.rows + r;
        c.cell.clear();
        for (long i = 0; i < C; ++i)
            if (!a.active || a.active[at * C + i]) c.cell.push_back(i);
        c.count = long(c.cell.size());
        c.complete = a.complete[at];
        c.restart = a.restart && a.restart[at];
        for (long t = 0; t < c.count; ++t) {
            const long cell = at * C + c.cell[t];
            copy_row(static_cast<const T*>(a.q) + cell * D, D, c.q[t]);
            copy_row(static_cast<const T*>(a.k) + cell * D, D, c.layers[0].u[t]);
            copy_row(static_cast<const T*>(a.offset) + cell * D, D, c.offset[t]);
            for (long l = 0; l < L; ++l) {
                c.coefficients[l].keep[t] = T(1) - static_cast<const T*>(a.alpha[l])[cell];
                c.coefficients[l].eta[t] = static_cast<const T*>(a.eta[l])[cell];
                c.layers[l].theta[t] = static_cast<const T*>(a.theta[l])[cell];
            }
        }
        for (auto& coefficients : c.coefficients) coefficients.fill(c.count);
    }

    // The steps of a chunk's tokens, with gradients at the anchor.
    void write(Chunk<T>& c, const std::vector<Matrix<T>>& anchor) {
        const long n = c.count;
        const std::vector<Matrix<T>>& A = at(anchor);
        for (long l = 0; l < L; ++l) {
            Steps<T>& s = c.layers[l];
            product(term(s.u, A[l], in(l)), n, padded<T>(out(l)), l + 1 < L ? z : c.normed);
            if (l + 1 < L)
                for (long t = 0; t < n; ++t)
                    activate(activation, padded<T>(out(l)), z[t], c.layers[l + 1].u[t], s.slope[t], s.bend.data ? s.bend[t] : nullptr);
        }
        for (long t = 0; t < n; ++t) loss_gradient(c, t);
        for (long l = L - 2; l >= 0; --l) {
            Steps<T>& s = c.layers[l];
            product_transposed(left(c.layers[l + 1].g, n, out(l + 1), lanes), A[l + 1], out(l), out(l + 1), e);
            for (long t = 0; t < n; ++t)
                each<T>(padded<T>(out(l)), [&](long i) {
                    const Vec<T> by_output = load(e[t] + i);
                    store(s.g[t] + i, by_output * load(s.slope[t] + i));
                    if (s.bend.data) store(s.bend[t] + i, by_output * load(s.bend[t] + i));
                });
        }
        for (long l = 0; l < L; ++l) scale_steps(c.layers[l], n, padded<T>(in(l)), padded<T>(out(l)));
    }

    // Reads of all tokens, at the state before the chunk and the steps inside it: z (n, D), before norm and residual. Without the last
    // layer's product where only what leads to it is wanted.
    void read(Chunk<T>& c, const State<T>& before, bool last_product) {
        const long n = c.count;
        for (long l = 0; l < L; ++l) {
            const Coefficients<T>& k = c.coefficients[l];
            const Matrix<T> x_l = l ? x[l] : c.q;
            for (long t = 0; t < n; ++t)
                each<T>(padded<T>(in(l)), [&](long i) {
                    store(x_W[l][t] + i, k.b[t] * load(x_l[t] + i));
                    store(x_S[l][t] + i, k.f[t] * load(x_l[t] + i));
                });
            product_transposed(left(x_l, n, in(l), lanes), c.layers[l].u, n, in(l), scores[l]);
            for (long t = 0; t < n; ++t)
                each<T>(padded<T>(n), [&](long s) { store(mixed[l][t] + s, until(t, s, load(scores[l][t] + s)) * load(k.G[t] + s)); });
            if (l + 1 == L && !last_product) return;
            const Term<T> terms[3] = {term(x_W[l], before.W[l], in(l)), term(x_S[l], before.S[l], in(l)), term(mixed[l], c.layers[l].steps, n)};
            product(terms, n, padded<T>(out(l)), z);
            if (!rest.empty()) product(term(x_l, rest[l], in(l)), n, padded<T>(out(l)), z, true);
            if (l + 1 < L)
                for (long t = 0; t < n; ++t)
                    activate(activation, padded<T>(out(l)), z[t], x[l + 1][t], last_product ? nullptr : x_slope[l + 1][t], static_cast<T*>(nullptr));
        }
    }

    // The state after the chunk; it may stand where the one before does.
    void advance(Chunk<T>& c, const State<T>& before, const State<T>& after) {
        const long n = c.count;
        for (long l = 0; l < L; ++l) {
            weigh_inputs(c, l);
            const Coefficients<T>& k = c.coefficients[l];
            update<T>({before.W[l], before.S[l], after.W[l], after.S[l], u_W[l], u_S[l], c.layers[l].steps, n ? k.b[n - 1] : T(1),
                       n ? k.f[n - 1] : T(0), n ? k.m[n - 1] : T(1), n},
                      in(l), padded<T>(out(l)));
        }
    }

    // u_s by its weight in the state after the chunk: G[n, s] in W, Q[n, s] in S.
    void weigh_inputs(Chunk<T>& c, long l) {
        const long n = c.count;
        const Coefficients<T>& k = c.coefficients[l];
        for (long s = 0; s < n; ++s)
            each<T>(padded<T>(in(l)), [&](long i) {
                store(u_W[l][s] + i, k.G[n - 1][s] * load(c.layers[l].u[s] + i));
                store(u_S[l][s] + i, k.Q[n - 1][s] * load(c.layers[l].u[s] + i));
            });
    }

    // v, the columns of row t from s on, with zeros behind t.
    static Vec<T> until(long t, long s, Vec<T> v) { return counting<T>() <= splat_int<T>(t - s) ? v : Vec<T>{}; }

    // J d = (d - mean d - normed mean(d normed)) / std, the symmetric derivative of the norm; zero stays in the padding.
    void norm_adjoint(const T* d, const T* normed, T inverse_std, T* result) {
        Vec<T> total{}, along{};
        each<T>(padded<T>(D), [&](long i) {
            total += load(d + i);
            along += load(d + i) * load(normed + i);
        });
        const T mean = sum<T>(total) / T(D), projection = sum<T>(along) / T(D);
        each<T>(padded<T>(D), [&](long i) { store(result + i, inverse_std * (load(d + i) - mean - load(normed + i) * projection)); });
        for (long i = D; i < padded<T>(D); ++i) result[i] = T(0);
    }

    const Arguments& a;
    const long D, C, L;
    const Activation activation;
    Arena<T>& arena;
    long r = 0;
    T* slope;                                     // of the loss, by the normed output: (D)
    Matrix<T> z, e, lanes;                        // work: (n, widest), twice; of left()
    std::vector<Matrix<T>> x, x_slope, x_W, x_S;  // a layer's reads: inputs, act' behind them, b x and f x
    std::vector<Matrix<T>> scores, mixed;         // x u^T and its causal part times G: (n, n)
    std::vector<Matrix<T>> u_W, u_S;              // inputs u by their weight in W and S after the chunk
    std::vector<Matrix<T>> rest, point;           // what the layers are beside W and anchor, empty for nothing; and both together

  private:
    // g_L of a token from its z_L: offset + slope z, through the norm if there is one. Sums are over the true width.
    void loss_gradient(Chunk<T>& c, long t) {
        T *z_t = c.normed[t], *g = c.layers[L - 1].g[t];
        if (a.norm) c.inverse_std[t] = normalise(z_t);
        each<T>(padded<T>(D), [&](long i) { store(g + i, load(c.offset[t] + i) + load(slope + i) * load(z_t + i)); });
        if (a.norm) norm_adjoint(g, z_t, c.inverse_std[t], g);
    }

    T normalise(T* z_t) {
        Vec<T> total{};
        each<T>(padded<T>(D), [&](long i) { total += load(z_t + i); });
        const T mean = sum<T>(total) / T(D);
        for (long i = 0; i < D; ++i) z_t[i] -= mean;
        const T inverse_std = T(1) / std::sqrt(dot(z_t, z_t, padded<T>(D)) / T(D) + T(NORM_EPS));
        each<T>(padded<T>(D), [&](long i) { store(z_t + i, inverse_std * load(z_t + i)); });
        return inverse_std;
    }

    void scale_steps(Steps<T>& s, long n, long in, long out) {
        for (long t = 0; t < n; ++t) {
            s.clip[t] = T(1);
            if (a.clip > 0) {
                s.u_square[t] = dot(s.u[t], s.u[t], in), s.g_square[t] = dot(s.g[t], s.g[t], out);
                s.clip[t] = T(a.clip) / std::max(T(a.clip), std::sqrt(s.u_square[t]) * std::sqrt(s.g_square[t]));
            }
            const T scale = -s.theta[t] * s.clip[t];
            each<T>(out, [&](long i) { store(s.steps[t] + i, scale * load(s.g[t] + i)); });
        }
    }
};

}  // namespace titans
