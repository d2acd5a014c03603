// The dual form of the memory on CPUs, forward and backward: rows (batch x heads) over threads, each row all its chunks by itself.
//
// What is computed is what titans_seq/memory/chunkwise.py computes; docs/rule.md derives it.

#include <atomic>
#include <cstdlib>
#include <memory>
#include <new>
#include <system_error>
#include <thread>

#include "adjoint.h"

namespace titans {

template <class T>
inline const T* layer_of(const void* const* layers, long l, long at) {
    return static_cast<const T*>(layers[l]) + at;
}

template <class T>
inline T* layer_of(void* const* layers, long l, long at) {
    return static_cast<T*>(layers[l]) + at;
}

// Matrices of all layers from or to arrays (blocks, d_in, d_out), one a layer.
template <class T>
void load_layers(const Walk<T>& walk, const void* const* from, long block, const std::vector<Matrix<T>>& to) {
    for (long l = 0; l < walk.L; ++l) copy_in(layer_of<T>(from, l, block * walk.in(l) * walk.out(l)), walk.in(l), walk.out(l), to[l]);
}

template <class T>
void save_layers(const Walk<T>& walk, const std::vector<Matrix<T>>& from, void* const* to, long block) {
    for (long l = 0; l < walk.L; ++l) copy_out(from[l], walk.in(l), walk.out(l), layer_of<T>(to, l, block * walk.in(l) * walk.out(l)));
}

template <class T>
void zero_layers(const Walk<T>& walk, const std::vector<Matrix<T>>& layers) {
    for (size_t l = 0; l < layers.size(); ++l) fill_zero(layers[l], walk.in(l), walk.out(l));
}

// The tokens of a chunk to its cells on the grid, zero in cells without a token: (width) numbers each, contiguous.
template <class T>
void scatter(const Chunk<T>& c, long cells, const T* tokens, long stride, long width, void* grid, long chunk) {
    T* to = static_cast<T*>(grid) + chunk * cells * width;
    if (c.count < cells) std::memset(to, 0, cells * width * sizeof(T));
    for (long t = 0; t < c.count; ++t) std::memcpy(to + c.cell[t] * width, tokens + t * stride, width * sizeof(T));
}

template <class T>
void scatter(const Chunk<T>& c, long cells, Matrix<T> tokens, long width, void* grid, long chunk) {
    scatter(c, cells, tokens.data, tokens.stride, width, grid, chunk);
}

template <class T>
class Forward {
  public:
    Forward(const Arguments& a, Arena<T>& arena) : a(a), walk(a, arena), chunk(walk.make_chunk(false)), state(walk.make_state()) {
        own_anchor = walk.make_layers();
    }

    void row(long r) {
        walk.begin_row(r);
        load_layers(walk, a.W, r, state.W);
        load_layers(walk, a.S, r, state.S);
        if (a.anchor) load_layers(walk, a.anchor, r, own_anchor);
        bool at_weights = !a.anchor;
        for (long n = 0; n < a.chunks; ++n) {
            if (n % a.segment == 0) keep(n / a.segment * a.rows + r, at_weights);
            walk.gather(n, chunk);
            if (chunk.restart) {
                load_layers(walk, a.first, r, state.W);
                zero_layers(walk, state.S);
                at_weights = true;
            }
            walk.write(chunk, at_weights ? state.W : own_anchor);
            walk.read(chunk, state, true);
            scatter(chunk, a.cells, walk.z, walk.D, a.z, n * a.rows + r);
            if (at_weights && !chunk.complete) copy_anchor();
            walk.advance(chunk, state, state);
            at_weights = chunk.complete;
        }
        save_layers(walk, state.W, a.W_after, r);
        save_layers(walk, state.S, a.S_after, r);
        if (a.anchor_after) save_layers(walk, at_weights ? state.W : own_anchor, a.anchor_after, r);
    }

  private:
    void keep(long block, bool at_weights) {
        if (!a.kept_W) return;
        save_layers(walk, state.W, a.kept_W, block);
        save_layers(walk, state.S, a.kept_S, block);
        if (a.kept_anchor) save_layers(walk, at_weights ? state.W : own_anchor, a.kept_anchor, block);
    }

    void copy_anchor() {
        for (long l = 0; l < walk.L; ++l)
            for (long i = 0; i < walk.in(l); ++i) copy_row(state.W[l][i], walk.out(l), own_anchor[l][i]);
    }

    const Arguments& a;
    Walk<T> walk;
    Chunk<T> chunk;
    State<T> state;
    std::vector<Matrix<T>> own_anchor;
};

// Segment by segment from the last: its states are made again from the one that was kept, then the chunks are gone back over.
template <class T>
class Backward {
  public:
    Backward(const Arguments& a, Arena<T>& arena) : a(a), walk(a, arena), adjoint(walk.make_state_adjoint()) {
        for (long i = 0; i < std::min(a.segment, a.chunks); ++i) {
            chunks.push_back(walk.make_chunk(true));
            states.push_back(walk.make_state());
        }
        kept_anchor = walk.make_layers();
        anchors.resize(chunks.size());
    }

    void row(long r) {
        walk.begin_row(r);
        load_layers(walk, a.d_W_after, r, adjoint.state.W);
        load_layers(walk, a.d_S_after, r, adjoint.state.S);
        if (a.d_anchor_after) load_layers(walk, a.d_anchor_after, r, adjoint.anchor);
        adjoint.has_anchor = a.d_anchor_after != nullptr;
        zero_layers(walk, adjoint.first);
        zero_layers(walk, adjoint.rest);
        std::memset(adjoint.slope, 0, padded<T>(walk.D) * sizeof(T));
        for (long i = (a.chunks - 1) / a.segment; i >= 0; --i) segment(i, r);
        save_layers(walk, adjoint.state.W, a.d_W, r);
        save_layers(walk, adjoint.state.S, a.d_S, r);
        if (a.d_anchor) {
            if (!adjoint.has_anchor) zero_layers(walk, adjoint.anchor);
            save_layers(walk, adjoint.anchor, a.d_anchor, r);
        }
        if (a.first) save_layers(walk, adjoint.first, a.d_first, r);
        if (a.rest) save_layers(walk, adjoint.rest, a.d_rest, r);
        std::memcpy(static_cast<T*>(a.d_slope) + r * walk.D, adjoint.slope, walk.D * sizeof(T));
    }

  private:
    void segment(long i, long r) {
        const long begin = i * a.segment, count = std::min<long>(a.segment, a.chunks - begin);
        write(i, r, begin, count);
        for (long n = count - 1; n >= 0; --n) {
            const long at = (begin + n) * a.rows + r;
            gather_gradient(chunks[n], at);
            walk.back(chunks[n], states[n], anchors[n], adjoint);
            put(chunks[n], at);
        }
    }

    // All states and steps of the segment. An anchor that is not the weights is those of an earlier chunk, or came with the segment.
    void write(long i, long r, long begin, long count) {
        load_layers(walk, a.kept_W, i * a.rows + r, states[0].W);
        load_layers(walk, a.kept_S, i * a.rows + r, states[0].S);
        const void* const* anchor = i ? a.kept_anchor : a.anchor;
        if (anchor) load_layers(walk, anchor, i ? i * a.rows + r : r, kept_anchor);
        std::vector<Matrix<T>> current = anchor ? kept_anchor : states[0].W;
        for (long n = 0; n < count; ++n) {
            walk.gather(begin + n, chunks[n]);
            if (chunks[n].restart) {
                load_layers(walk, a.first, r, states[n].W);
                zero_layers(walk, states[n].S);
                current = states[n].W;
            }
            anchors[n] = current;
            walk.write(chunks[n], current);
            if (n + 1 == count) break;
            walk.advance(chunks[n], states[n], states[n + 1]);
            if (chunks[n].complete) current = states[n + 1].W;
        }
    }

    void gather_gradient(const Chunk<T>& c, long at) {
        const T* d_z = static_cast<const T*>(a.d_z) + at * a.cells * walk.D;
        for (long t = 0; t < c.count; ++t) copy_row(d_z + c.cell[t] * walk.D, walk.D, walk.d_z[walk.L - 1][t]);
    }

    void put(const Chunk<T>& c, long at) {
        scatter(c, a.cells, walk.d.q, walk.D, a.d_q, at);
        scatter(c, a.cells, walk.d.u[0], walk.D, a.d_k, at);
        scatter(c, a.cells, walk.d.offset, walk.D, a.d_offset, at);
        for (long l = 0; l < walk.L; ++l) {
            scatter(c, a.cells, walk.d.alpha[l], 1, 1, a.d_alpha[l], at);
            scatter(c, a.cells, walk.d.eta[l], 1, 1, a.d_eta[l], at);
            scatter(c, a.cells, walk.d.theta[l], 1, 1, a.d_theta[l], at);
        }
    }

    const Arguments& a;
    Adjoint<T> walk;
    std::vector<Chunk<T>> chunks;
    std::vector<State<T>> states;
    std::vector<std::vector<Matrix<T>>> anchors;
    StateAdjoint<T> adjoint;
    std::vector<Matrix<T>> kept_anchor;
};

// Every row once, by as many threads as can be had; 0, or 1 if memory is short.
template <class Pass, class T>
int over_rows(const Arguments& a) try {
    Arena<T> count(nullptr);
    Pass{a, count};
    std::atomic<long> next{0};
    std::atomic<int> failed{0};
    auto work = [&] {
        try {
            const std::unique_ptr<void, decltype(&std::free)> memory(std::calloc(count.used() + LANES<T>, sizeof(T)), &std::free);
            if (!memory) throw std::bad_alloc();
            const size_t misplaced = reinterpret_cast<size_t>(memory.get()) % VECTOR_BYTES / sizeof(T);
            Arena<T> arena(static_cast<T*>(memory.get()) + (misplaced ? LANES<T> - misplaced : 0));  // no vector across two cache lines
            Pass pass{a, arena};
            for (long r = next++; r < a.rows; r = next++) pass.row(r);
        } catch (const std::bad_alloc&) {
            failed = 1;
        }
    };
    std::vector<std::thread> others;
    others.reserve(std::min(a.threads, a.rows));
    try {
        for (long i = 1; i < std::min(a.threads, a.rows); ++i) others.emplace_back(work);
    } catch (const std::exception&) {  // no more threads to be had: fewer do it as well
    }
    work();
    for (std::thread& other : others) other.join();
    return failed;
} catch (const std::bad_alloc&) {
    return 1;
}

}  // namespace titans

// One library for float, one for double: TITANS_NUMBER says which this is.
extern "C" {
int titans_forward(const titans::Arguments* a) { return titans::over_rows<titans::Forward<TITANS_NUMBER>, TITANS_NUMBER>(*a); }
int titans_backward(const titans::Arguments* a) { return titans::over_rows<titans::Backward<TITANS_NUMBER>, TITANS_NUMBER>(*a); }
}
