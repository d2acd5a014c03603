// Back over one chunk: from gradients by its reads and by the state after it, to those by its inputs and by the state before it
// (docs/rule.md, "The outer backward"). A name d_x is the gradient of the outer loss by x.
#pragma once

#include "chunk.h"

namespace titans {

// Gradients by what the chunks of a row share: by the state, changed in place on the way back; by the anchor where it is not the weights.
template <class T>
struct StateAdjoint {
    State<T> state;                  // d_W, d_S
    std::vector<Matrix<T>> anchor;   // d_A, if has_anchor
    bool has_anchor = false;
    std::vector<Matrix<T>> first;    // of rows that restart
    std::vector<Matrix<T>> rest;     // of what the layers are beside W and anchor
    T* slope;                        // (D)
};

// Of one chunk, by token.
template <class T>
struct TokenAdjoint {
    Matrix<T> q, offset;                 // (n, D); by k: u[0]
    std::vector<Matrix<T>> u, steps;     // (n, d_in), (n, d_out) of a layer
    std::vector<T*> alpha, eta, theta;   // (n)
};

template <class T>
class Adjoint : public Walk<T> {
  public:
    using Walk<T>::C;
    using Walk<T>::D;
    using Walk<T>::L;

    Adjoint(const Arguments& a, Arena<T>& arena) : Walk<T>(a, arena) {
        d.q = arena.matrix(C, D), d.offset = arena.matrix(C, D);
        for (long l = 0; l < L; ++l) {
            d.u.push_back(arena.matrix(C, this->in(l))), d.steps.push_back(arena.matrix(C, this->out(l)));
            d.alpha.push_back(arena.numbers(C)), d.eta.push_back(arena.numbers(C)), d.theta.push_back(arena.numbers(C));
            d_z.push_back(arena.matrix(C, this->out(l))), d_g.push_back(arena.matrix(C, this->out(l)));
            by.emplace_back(arena, C);
        }
        long widest = D;
        for (long l = 0; l <= L; ++l) widest = std::max<long>(widest, a.widths[l]);
        by_W = arena.matrix(C, widest), by_S = arena.matrix(C, widest), d_x = arena.matrix(C, widest);
        d_scores = arena.matrix(C, C);
        if (a.rest) d_point = this->make_layers();
    }

    StateAdjoint<T> make_state_adjoint() {
        StateAdjoint<T> s;
        s.state = this->make_state();
        s.anchor = this->make_layers();
        if (this->a.first) s.first = this->make_layers();
        if (this->a.rest) s.rest = this->make_layers();
        s.slope = this->arena.numbers(D);
        return s;
    }

    // Chunk c, which `write` has filled at the layers A, with the state before it. d_z.back() holds the gradient by its reads.
    void back(Chunk<T>& c, const State<T>& before, const std::vector<Matrix<T>>& A, StateAdjoint<T>& s) {
        const bool at_weights = A[0].data == before.W[0].data;
        if (s.has_anchor && c.complete) join_anchor(s);  // the anchor after the chunk is the weights after it
        if (c.count) {
            this->read(c, before, false);
            for (long l = L - 1; l >= 0; --l) back_read(c, before, l, s);
            for (long l = 0; l < L; ++l) back_advance(c, before, l, s.state);
        }
        if (at_weights && s.has_anchor) join_anchor(s);
        if (!at_weights && !s.has_anchor) {
            for (long l = 0; l < L; ++l) fill_zero(s.anchor[l], this->in(l), this->out(l));
            s.has_anchor = true;
        }
        if (c.count) {
            back_write(c, A, at_weights ? s.state.W : s.anchor, s);
            for (long l = 0; l < L; ++l) back_coefficients(c, l);
        }
        if (c.restart) back_restart(s);
    }

    TokenAdjoint<T> d;
    std::vector<Matrix<T>> d_z;  // of every layer's reads, (n, d_out)

  private:
    std::vector<Matrix<T>> d_g;
    std::vector<Coefficients<T>> by;  // gradients by the coefficients; of m and Q only the last row is given, keep and eta stay unused
    Matrix<T> by_W, by_S, d_x, d_scores;
    std::vector<Matrix<T>> d_point;  // by the layers at which a chunk's gradients were taken, where these are anchor and rest

    void join_anchor(StateAdjoint<T>& s) {
        for (long l = 0; l < L; ++l)
            for (long i = 0; i < this->in(l); ++i) add(s.state.W[l][i], s.anchor[l][i], padded<T>(this->out(l)));
        s.has_anchor = false;
    }

    static void add(T* to, const T* x, long n) {
        each<T>(n, [&](long i) { store(to + i, load(to + i) + load(x + i)); });
    }

    // In a row that restarts the state before the chunk was the first state.
    void back_restart(StateAdjoint<T>& s) {
        if (s.has_anchor) join_anchor(s);
        for (long l = 0; l < L; ++l) {
            const long columns = padded<T>(this->out(l));
            for (long i = 0; i < this->in(l); ++i) add(s.first[l][i], s.state.W[l][i], columns);
            fill_zero(s.state.W[l], this->in(l), this->out(l));
            fill_zero(s.state.S[l], this->in(l), this->out(l));
        }
    }

    // z_t = (b_t x_t) W + (f_t x_t) S + sum_{s<=t} G[t, s] (x_t . u_s) step_s: begins d_u, d_steps and the gradients by b, f and G.
    // The layers' rest R, where there is one, adds x_t R.
    void back_read(Chunk<T>& c, const State<T>& before, long l, StateAdjoint<T>& s) {
        const long n = c.count, in = this->in(l), out = this->out(l), wide = padded<T>(in);
        const Coefficients<T>& k = c.coefficients[l];
        const Matrix<T> x = l ? this->x[l] : c.q, dz = d_z[l], result = l ? d_x : d.q;
        const Left<T> rows = left(dz, n, out, this->lanes);
        product_transposed(rows, before.W[l], in, out, by_W);
        product_transposed(rows, before.S[l], in, out, by_S);
        product_transposed(rows, c.layers[l].steps, n, out, d_scores);
        for (long t = 0; t < n; ++t) {
            by[l].b[t] = dot(by_W[t], x[t], wide), by[l].f[t] = dot(by_S[t], x[t], wide);
            each<T>(padded<T>(n), [&](long s) {
                const Vec<T> d_mixed = this->until(t, s, load(d_scores[t] + s));
                store(by[l].G[t] + s, d_mixed * this->until(t, s, load(this->scores[l][t] + s)));
                store(d_scores[t] + s, d_mixed * load(k.G[t] + s));
            });
            each<T>(wide, [&](long i) { store(result[t] + i, k.b[t] * load(by_W[t] + i) + k.f[t] * load(by_S[t] + i)); });
        }
        if (!s.rest.empty()) {
            product_transposed(rows, this->rest[l], in, out, result, true);
            product(transposed_term(x, dz, n), in, padded<T>(out), s.rest[l], true);
        }
        product(term(d_scores, c.layers[l].u, n), n, wide, result, true);
        product(transposed_term(d_scores, x, n), n, wide, d.u[l]);
        product(transposed_term(this->mixed[l], dz, n), n, padded<T>(out), d.steps[l]);
        if (l > 0)
            for (long t = 0; t < n; ++t)
                each<T>(wide, [&](long i) { store(d_z[l - 1][t] + i, load(d_x[t] + i) * load(this->x_slope[l][t] + i)); });
    }

    // W' = b_n W + f_n S + u_W^T steps, S' = m_n S + u_S^T steps; then what the reads add, d_W += (b x)^T d_z and d_S += (f x)^T d_z.
    void back_advance(Chunk<T>& c, const State<T>& before, long l, State<T>& s) {
        const long n = c.count, in = this->in(l), out = this->out(l), wide = padded<T>(in), last = n - 1;
        const Coefficients<T>& k = c.coefficients[l];
        const Steps<T>& layer = c.layers[l];
        this->weigh_inputs(c, l);
        const Term<T> terms[2] = {term(this->u_W[l], s.W[l], in), term(this->u_S[l], s.S[l], in)};
        product(terms, n, padded<T>(out), d.steps[l], true);
        const Left<T> steps = left(layer.steps, n, out, this->lanes);
        product_transposed(steps, s.W[l], in, out, by_W);
        product_transposed(steps, s.S[l], in, out, by_S);
        std::memset(by[l].Q[last], 0, padded<T>(n) * sizeof(T));
        for (long t = 0; t < n; ++t) {
            each<T>(wide, [&](long i) {
                store(d.u[l][t] + i, load(d.u[l][t] + i) + k.G[last][t] * load(by_W[t] + i) + k.Q[last][t] * load(by_S[t] + i));
            });
            by[l].G[last][t] += dot(by_W[t], layer.u[t], wide);
            by[l].Q[last][t] = dot(by_S[t], layer.u[t], wide);
        }
        carry_products(before, s, l, by[l].b[last], by[l].f[last], by[l].m[last]);
        update<T>({s.S[l], s.W[l], s.S[l], s.W[l], this->x_S[l], this->x_W[l], d_z[l], k.m[last], k.f[last], k.b[last], n}, in,
                  padded<T>(out));
    }

    // By b_n, f_n and m_n: <d_W, W> and <d_W, S> are added, <d_S, S> is set.
    void carry_products(const State<T>& before, const State<T>& s, long l, T& b, T& f, T& m) {
        Vec<T> to_b{}, to_f{}, to_m{};
        for (long i = 0; i < this->in(l); ++i)
            each<T>(padded<T>(this->out(l)), [&](long j) {
                const Vec<T> dW = load(s.W[l][i] + j), S = load(before.S[l][i] + j);
                to_b += dW * load(before.W[l][i] + j);
                to_f += dW * S;
                to_m += load(s.S[l][i] + j) * S;
            });
        b += sum<T>(to_b), f += sum<T>(to_f), m = sum<T>(to_m);
    }

    // Back over the steps, whose gradients were taken at the anchor A: to d_A and, where the layers have a rest, to that as well.
    void back_write(Chunk<T>& c, const std::vector<Matrix<T>>& A, std::vector<Matrix<T>>& d_A, StateAdjoint<T>& s) {
        if (s.rest.empty()) return back_steps(c, A, d_A, s.slope);
        for (long l = 0; l < L; ++l) fill_zero(d_point[l], this->in(l), this->out(l));
        back_steps(c, this->at(A), d_point, s.slope);
        for (long l = 0; l < L; ++l)
            for (long i = 0; i < this->in(l); ++i) {
                add(d_A[l][i], d_point[l][i], padded<T>(this->out(l)));
                add(s.rest[l][i], d_point[l][i], padded<T>(this->out(l)));
            }
    }

    // The inner gradient, differentiated in the order that made it; d_A takes the share of the layers at which it was taken.
    void back_steps(Chunk<T>& c, const std::vector<Matrix<T>>& A, std::vector<Matrix<T>>& d_A, T* d_slope) {
        const long n = c.count;
        for (long l = 0; l < L; ++l) back_scale(c.layers[l], n, l);
        for (long l = 0; l + 1 < L; ++l) {  // g_l = e_l act'(z_l), e_l = g_{l+1} A_{l+1}^T; d_z[l] begins with act''
            const Steps<T>& layer = c.layers[l];
            const long wide = padded<T>(this->out(l)), next = padded<T>(this->out(l + 1));
            for (long t = 0; t < n; ++t)
                each<T>(wide, [&](long i) {
                    const Vec<T> dg = load(d_g[l][t] + i);
                    store(d_z[l][t] + i, dg * load(layer.bend[t] + i));
                    store(d_g[l][t] + i, dg * load(layer.slope[t] + i));
                });
            product(term(d_g[l], A[l + 1], this->out(l)), n, next, d_g[l + 1], true);
        }
        for (long t = 0; t < n; ++t) back_loss_gradient(c, t, d_slope);
        for (long l = L - 1; l >= 0; --l) {  // z_l = u_l A_l
            const long in = this->in(l), out = this->out(l);
            const Term<T> by_z = transposed_term(c.layers[l].u, d_z[l], n);
            if (l == 0) {
                product(by_z, in, padded<T>(out), d_A[l], true);
            } else {
                const Term<T> both[2] = {by_z, transposed_term(d_g[l - 1], c.layers[l].g, n)};
                product(both, in, padded<T>(out), d_A[l], true);
            }
            product_transposed(left(d_z[l], n, out, this->lanes), A[l], in, out, d.u[l], true);
            for (long t = 0; t < n && l > 0; ++t)
                each<T>(padded<T>(in), [&](long i) {
                    store(d_z[l - 1][t] + i, load(d_z[l - 1][t] + i) + load(d.u[l][t] + i) * load(c.layers[l - 1].slope[t] + i));
                });
        }
    }

    // step = -theta clip g. Where the clip is below 1 it is -theta limit g / (|u| |g|): neither the length of u nor that of g matters.
    void back_scale(const Steps<T>& layer, long n, long l) {
        const long in = padded<T>(this->in(l)), out = padded<T>(this->out(l));
        for (long t = 0; t < n; ++t) {
            const T scale = -layer.theta[t] * layer.clip[t], by_scale = dot(d.steps[l][t], layer.g[t], out);
            d.theta[l][t] = -layer.clip[t] * by_scale;
            const bool clipped = layer.clip[t] < T(1);
            const T from_g = clipped ? scale * by_scale / layer.g_square[t] : T(0);
            each<T>(out, [&](long i) { store(d_g[l][t] + i, scale * load(d.steps[l][t] + i) - from_g * load(layer.g[t] + i)); });
            if (!clipped) continue;
            const T from_u = scale * by_scale / layer.u_square[t];
            each<T>(in, [&](long i) { store(d.u[l][t] + i, load(d.u[l][t] + i) - from_u * load(layer.u[t] + i)); });
        }
    }

    // g_L = J p with p = offset + slope normed; d_z of the last layer from d_g.
    void back_loss_gradient(const Chunk<T>& c, long t, T* d_slope) {
        const long wide = padded<T>(D);
        const T *dg = d_g[L - 1][t], *g = c.layers[L - 1].g[t], *normed = c.normed[t];
        T *d_offset = d.offset[t], *dz = d_z[L - 1][t];
        if (this->a.norm) {
            this->norm_adjoint(dg, normed, c.inverse_std[t], d_offset);
        } else {
            std::memcpy(d_offset, dg, wide * sizeof(T));
        }
        each<T>(wide, [&](long i) { store(d_slope + i, load(d_slope + i) + load(d_offset + i) * load(normed + i)); });
        if (!this->a.norm) {
            each<T>(wide, [&](long i) { store(dz + i, load(dg + i) * load(this->slope + i)); });
            return;
        }
        Vec<T> along{};
        each<T>(wide, [&](long i) { along += (load(c.offset[t] + i) + load(this->slope + i) * load(normed + i)) * load(normed + i); });
        const T toward_mean = -c.inverse_std[t] / T(D), to_dg = sum<T>(along) * toward_mean, to_p = dot(dg, normed, wide) * toward_mean;
        const T to_normed = dot(dg, g, wide) * toward_mean;
        each<T>(wide, [&](long i) {
            const Vec<T> p = load(c.offset[t] + i) + load(this->slope + i) * load(normed + i);
            store(dz + i, to_dg * load(dg + i) + to_p * p + load(d_offset + i) * load(this->slope + i));
        });
        this->norm_adjoint(dz, normed, c.inverse_std[t], dz);
        each<T>(wide, [&](long i) { store(dz + i, load(dz + i) + to_normed * load(normed + i)); });
    }

    // The recurrences of the coefficients backwards.
    void back_coefficients(Chunk<T>& c, long l) {
        const long n = c.count, wide = padded<T>(n);
        const Coefficients<T>& k = c.coefficients[l];
        Coefficients<T>& x = by[l];
        for (long t = n - 1; t >= 0; --t) {
            if (t + 1 < n) {
                const T keep = k.keep[t + 1];
                x.b[t] += keep * x.b[t + 1], x.f[t] += keep * x.f[t + 1];
                each<T>(wide, [&](long s) { store(x.G[t] + s, load(x.G[t] + s) + keep * load(x.G[t + 1] + s)); });
            }
            d.alpha[l][t] = -x.b[t] * (t ? k.b[t - 1] : T(1));
            if (t > 0) d.alpha[l][t] -= x.f[t] * k.f[t - 1] + dot(x.G[t], k.G[t - 1], wide);
        }
        for (long t = n - 1; t >= 0; --t) {
            const bool last = t == n - 1;
            const T eta = last ? T(0) : k.eta[t + 1];
            x.m[t] = x.f[t] + (last ? x.m[t] : eta * x.m[t + 1]);
            each<T>(wide, [&](long s) {
                const Vec<T> later = last ? load(x.Q[t] + s) : eta * load(x.Q[t + 1] + s);
                store(x.Q[t] + s, load(x.G[t] + s) + later);
            });
            d.eta[l][t] = x.m[t] * (t ? k.m[t - 1] : T(1)) + (t ? dot(x.Q[t], k.Q[t - 1], wide) : T(0));
        }
    }
};

}  // namespace titans
