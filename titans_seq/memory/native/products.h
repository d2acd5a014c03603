// Products of small matrices, row by row in memory. Every row of a matrix begins a whole number of vectors after the one before, and its
// padding holds zeros, so that products work on whole vectors only.
#pragma once

#include <algorithm>

#include "vectors.h"

namespace titans {

template <class T>
struct Matrix {
    T* data = nullptr;
    long stride = 0;  // from row to row

    T* operator[](long row) const { return data + row * stride; }
};

#if defined(__AVX512F__) || defined(__ARM_NEON)
constexpr long TILE_ROWS = 8;  // 32 vector registers
#else
constexpr long TILE_ROWS = 4;  // 16
#endif

// A summand of a product: a (rows x depth) times b (depth x columns), with a[m, k] at m * row + k * step: a matrix or a transposed one.
template <class T>
struct Term {
    const T* a;
    long row, step;
    const T* b;
    long stride, depth;
};

template <class T>
inline Term<T> term(Matrix<T> a, Matrix<T> b, long depth) {
    return {a.data, a.stride, 1, b.data, b.stride, depth};
}

template <class T>
inline Term<T> transposed_term(Matrix<T> a, Matrix<T> b, long depth) {
    return {a.data, 1, a.stride, b.data, b.stride, depth};
}

template <class T, long ROWS, long COLUMNS>
inline void add_term(const Term<T>& x, long m, long n, Vec<T> (&sums)[ROWS][COLUMNS]) {
    const T* a = x.a + m * x.row;
    const T* b = x.b + n;
    for (long k = 0; k < x.depth; ++k, a += x.step, b += x.stride) {
        Vec<T> row[COLUMNS];
        for (long j = 0; j < COLUMNS; ++j) row[j] = load(b + j * LANES<T>);
        for (long i = 0; i < ROWS; ++i)
            for (long j = 0; j < COLUMNS; ++j) sums[i][j] += a[i * x.row] * row[j];
    }
}

template <class T, long ROWS, long COLUMNS, int TERMS>
inline void tile(const Term<T> (&terms)[TERMS], long m, long n, Matrix<T> c, bool add) {
    Vec<T> sums[ROWS][COLUMNS];
    for (long i = 0; i < ROWS; ++i)
        for (long j = 0; j < COLUMNS; ++j) sums[i][j] = add ? load(c[m + i] + n + j * LANES<T>) : Vec<T>{};
    for (const Term<T>& x : terms) add_term<T, ROWS, COLUMNS>(x, m, n, sums);
    for (long i = 0; i < ROWS; ++i)
        for (long j = 0; j < COLUMNS; ++j) store(c[m + i] + n + j * LANES<T>, sums[i][j]);
}

// All tiles of ROWS rows from m on, then narrower ones.
template <class T, long ROWS, long COLUMNS, int TERMS>
inline void tiles(const Term<T> (&terms)[TERMS], long m, long rows, long n, Matrix<T> c, bool add) {
    for (; m + ROWS <= rows; m += ROWS) tile<T, ROWS, COLUMNS>(terms, m, n, c, add);
    if constexpr (ROWS > 1) tiles<T, ROWS / 2, COLUMNS>(terms, m, rows, n, c, add);
}

constexpr long NEAR_BYTES = 16384;  // a part of the nearest cache

// Columns that are worked on together: as many as `depth` rows of which stay near, so that the rows on the other side stream by.
template <class T>
inline long columns_together(long depth) {
    return std::max(2 * LANES<T>, NEAR_BYTES / long(sizeof(T)) / std::max(depth, 1L) / (2 * LANES<T>) * (2 * LANES<T>));
}

// c = the sum of the terms, or c += it: (rows x columns).
template <class T, int TERMS>
void product(const Term<T> (&terms)[TERMS], long rows, long columns, Matrix<T> c, bool add = false) {
    const long together = columns_together<T>(terms[0].depth);
    for (long begin = 0; begin < columns; begin += together)
        for (long m = 0; m < rows; m += TILE_ROWS) {
            const long end = std::min(begin + together, columns), some = std::min(m + TILE_ROWS, rows);
            long n = begin;
            for (; n + LANES<T> < end; n += 2 * LANES<T>) tiles<T, TILE_ROWS, 2>(terms, m, some, n, c, add);
            if (n < end) tiles<T, TILE_ROWS, 1>(terms, m, some, n, c, add);
        }
}

template <class T>
inline void product(Term<T> x, long rows, long columns, Matrix<T> c, bool add = false) {
    const Term<T> terms[1] = {x};
    product(terms, rows, columns, c, add);
}

// Two states take up the outer products of the same rows r (depth x columns):
//
//     to_x = keep_x x + mix y + a_x^T r      to_y = keep_y y + a_y^T r
//
// with x, y (rows x columns) and a_x, a_y (depth x rows). The results may stand where x and y do.
template <class T>
struct Update {
    Matrix<T> x, y, to_x, to_y, a_x, a_y, r;
    T keep_x, mix, keep_y;
    long depth;
};

template <class T, long ROWS, long COLUMNS>
inline void update_tile(const Update<T>& u, long m, long n) {
    Vec<T> x[ROWS][COLUMNS], y[ROWS][COLUMNS];
    for (long i = 0; i < ROWS; ++i)
        for (long j = 0; j < COLUMNS; ++j) {
            Vec<T> before = load(u.y[m + i] + n + j * LANES<T>);
            x[i][j] = u.keep_x * load(u.x[m + i] + n + j * LANES<T>) + u.mix * before;
            y[i][j] = u.keep_y * before;
        }
    for (long k = 0; k < u.depth; ++k) {
        Vec<T> row[COLUMNS];
        for (long j = 0; j < COLUMNS; ++j) row[j] = load(u.r[k] + n + j * LANES<T>);
        for (long i = 0; i < ROWS; ++i)
            for (long j = 0; j < COLUMNS; ++j) {
                x[i][j] += u.a_x[k][m + i] * row[j];
                y[i][j] += u.a_y[k][m + i] * row[j];
            }
    }
    for (long i = 0; i < ROWS; ++i)
        for (long j = 0; j < COLUMNS; ++j) {
            store(u.to_x[m + i] + n + j * LANES<T>, x[i][j]);
            store(u.to_y[m + i] + n + j * LANES<T>, y[i][j]);
        }
}

template <class T, long ROWS, long COLUMNS>
inline void update_tiles(const Update<T>& u, long m, long rows, long n) {
    for (; m + ROWS <= rows; m += ROWS) update_tile<T, ROWS, COLUMNS>(u, m, n);
    if constexpr (ROWS > 1) update_tiles<T, ROWS / 2, COLUMNS>(u, m, rows, n);
}

template <class T>
void update(const Update<T>& u, long rows, long columns) {
    const long together = columns_together<T>(u.depth);
    for (long begin = 0; begin < columns; begin += together)
        for (long m = 0; m < rows; m += TILE_ROWS / 2) {
            const long end = std::min(begin + together, columns), some = std::min(m + TILE_ROWS / 2, rows);
            long n = begin;
            for (; n + LANES<T> < end; n += 2 * LANES<T>) update_tiles<T, TILE_ROWS / 2, 2>(u, m, some, n);
            if (n < end) update_tiles<T, TILE_ROWS / 2, 1>(u, m, some, n);
        }
}

// Tokens on the left of products with a transposed matrix, c = a b^T for a (rows x depth): few rows are taken as they are, more are
// transposed once, so that each lane is a row of a, and serve any number of products.
template <class T>
struct Left {
    Matrix<T> rows, columns;
    long count;
};

constexpr long FEW_ROWS = 2;

template <class T>
Left<T> left(Matrix<T> a, long rows, long depth, Matrix<T> work) {
    constexpr long L = LANES<T>;
    if (rows > FEW_ROWS)
        for (long m = 0; m < rows; m += L)
            for (long k = 0; k < depth; k += L) {
                Vec<T> block[L];
                for (long i = 0; i < L; ++i) block[i] = load(a[m + i] + k);
                transpose<T>(block);
                for (long i = 0; i < L; ++i) store(work[k + i] + m, block[i]);
            }
    return {a, work, rows};
}

template <class T>
inline void put(Vec<T> (&block)[LANES<T>], long rows, Matrix<T> c, long m, long n, bool add) {
    for (long i = 0; i < rows; ++i) store(c[m + i] + n, add ? load(c[m + i] + n) + block[i] : block[i]);
}

// c = a b^T, or c += it: (rows x columns), for b (columns x depth), whose rows are padded to whole vectors of them as well.
template <class T>
void product_transposed(const Left<T>& a, Matrix<T> b, long columns, long depth, Matrix<T> c, bool add = false) {
    constexpr long L = LANES<T>;
    for (long m = 0; m < a.count; m += a.count > FEW_ROWS ? L : 1)
        for (long n = 0; n < columns; n += L) {
            Vec<T> block[L] = {};
            if (a.count > FEW_ROWS) {
                for (long k = 0; k < depth; ++k) {
                    Vec<T> lanes = load(a.columns[k] + m);
                    for (long i = 0; i < L; ++i) block[i] += b[n + i][k] * lanes;
                }
                transpose<T>(block);
                put<T>(block, a.count - m < L ? a.count - m : L, c, m, n, add);
            } else {
                for (long k = 0; k < depth; k += L) {
                    Vec<T> part = load(a.rows[m] + k);
                    for (long i = 0; i < L; ++i) block[i] += load(b[n + i] + k) * part;
                }
                transpose<T>(block);
                for (long i = 1; i < L; ++i) block[0] += block[i];
                put<T>(block, 1, c, m, n, add);
            }
        }
}

// Over a row of n numbers, n a multiple of the lanes.
template <class T>
inline T dot(const T* a, const T* b, long n) {
    Vec<T> total{};
    for (long i = 0; i < n; i += LANES<T>) total += load(a + i) * load(b + i);
    return sum<T>(total);
}

template <class T, class F>
inline void each(long n, F function) {
    for (long i = 0; i < n; i += LANES<T>) function(i);
}

}  // namespace titans
