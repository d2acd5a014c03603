// The arguments of a call, as titans_seq/memory/native/operator.py lays them out, and the memory a thread works in.
//
// Shapes as in titans_seq/memory/chunks.py: N chunks, R rows (batch x heads), C cells of a chunk, D width, d_0 .. d_L the layers' widths.
#pragma once

#include <cstdint>

#include "functions.h"
#include "products.h"

namespace titans {

struct Arguments {
    int64_t chunks, rows, cells, depth, segment, threads, activation, norm;
    double clip;  // 0: none
    const int64_t* widths;

    // Inputs on the grid, and flags (N, R, C), (N, R), (N, R). A pointer is null where there is nothing.
    const void *q, *k, *offset, *slope;
    const uint8_t *active, *complete, *restart;
    // z; or the gradient by it, and those by the inputs.
    void* z;
    const void* d_z;
    void *d_q, *d_k, *d_offset, *d_slope;

    // One a layer, from here on. Inputs.
    const void *const *alpha, *const *eta, *const *theta, *const *W, *const *S, *const *anchor, *const *first, *const *rest;
    // The state after the last chunk, and those before every segment: (segments, R, d_in, d_out).
    void *const *W_after, *const *S_after, *const *anchor_after, *const *kept_W, *const *kept_S, *const *kept_anchor;
    // Gradients by the state after, which are given, and by the inputs.
    const void *const *d_W_after, *const *d_S_after, *const *d_anchor_after;
    void *const *d_alpha, *const *d_eta, *const *d_theta, *const *d_W, *const *d_S, *const *d_anchor, *const *d_first, *const *d_rest;
};

// Memory of one thread, handed out piece by piece. Without a base it only counts.
template <class T>
class Arena {
  public:
    explicit Arena(T* base) : base_(base) {}

    T* numbers(long n) {
        T* found = base_ ? base_ + used_ : nullptr;
        used_ += padded<T>(n);
        return found;
    }

    // Of padded rows, an odd number of vectors apart: an even one would put them into few sets of the cache.
    Matrix<T> matrix(long rows, long columns) {
        const long stride = (padded<T>(columns) / LANES<T> | 1) * LANES<T>;
        return {numbers(padded<T>(rows) * stride), stride};
    }

    long used() const { return used_; }

  private:
    T* base_;
    long used_ = 0;
};

// n numbers, and zeros in the padding behind them: what was there may be no number.
template <class T>
inline void copy_row(const T* from, long n, T* to) {
    std::memcpy(to, from, n * sizeof(T));
    for (long i = n; i < padded<T>(n); ++i) to[i] = T(0);
}

template <class T>
inline void copy_in(const T* from, long rows, long columns, Matrix<T> to) {
    for (long i = 0; i < rows; ++i) copy_row(from + i * columns, columns, to[i]);
}

template <class T>
inline void copy_out(Matrix<T> from, long rows, long columns, T* to) {
    for (long i = 0; i < rows; ++i) std::memcpy(to + i * columns, from[i], columns * sizeof(T));
}

template <class T>
inline void fill_zero(Matrix<T> x, long rows, long columns) {
    for (long i = 0; i < rows; ++i) std::memset(x[i], 0, padded<T>(columns) * sizeof(T));
}

}  // namespace titans
