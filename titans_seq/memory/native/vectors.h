// Vectors of the machine's width, and what is done with whole vectors: loads, sums, transposition.
//
// GCC's and Clang's vector extensions: the compiler turns them into AVX-512, AVX, SSE, NEON or plain code, as the machine has it.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <utility>

namespace titans {

#if defined(__AVX512F__)
constexpr long VECTOR_BYTES = 64;
#elif defined(__AVX__)
constexpr long VECTOR_BYTES = 32;
#else
constexpr long VECTOR_BYTES = 16;
#endif

template <class T>
struct VectorOf;
template <>
struct VectorOf<float> {
    typedef float Type __attribute__((vector_size(VECTOR_BYTES)));
    typedef int32_t Integers __attribute__((vector_size(VECTOR_BYTES)));
};
template <>
struct VectorOf<double> {
    typedef double Type __attribute__((vector_size(VECTOR_BYTES)));
    typedef int64_t Integers __attribute__((vector_size(VECTOR_BYTES)));
};
template <class T>
using Vec = typename VectorOf<T>::Type;
template <class T>
using Ints = typename VectorOf<T>::Integers;
template <class T>
constexpr long LANES = VECTOR_BYTES / long(sizeof(T));

template <class T>
constexpr long padded(long n) {
    return (n + LANES<T> - 1) / LANES<T> * LANES<T>;
}

template <class T>
inline Vec<T> load(const T* p) {
    Vec<T> v;
    std::memcpy(&v, p, sizeof v);
    return v;
}

template <class T>
inline void store(T* p, Vec<T> v) {
    std::memcpy(p, &v, sizeof v);
}

template <class T>
inline Vec<T> splat(T x) {
    return Vec<T>{} + x;
}

template <class T>
inline Ints<T> splat_int(long x) {
    return Ints<T>{} + decltype(Ints<T>{}[0] + 0)(x);
}

template <class T, size_t... I>
inline Ints<T> counting(std::index_sequence<I...>) {
    return Ints<T>{I...};
}

// 0, 1, 2, ..
template <class T>
inline Ints<T> counting() {
    return counting<T>(std::make_index_sequence<LANES<T>>{});
}

// Shuffles. Lane i of the result is lane INDEX of the two vectors side by side.

#if defined(__clang__) || __GNUC__ >= 12
template <class T, int... INDEX>
inline Vec<T> shuffle(Vec<T> a, Vec<T> b) {
    return __builtin_shufflevector(a, b, INDEX...);
}
#else
template <class T, int... INDEX>
inline Vec<T> shuffle(Vec<T> a, Vec<T> b) {
    return __builtin_shuffle(a, b, Ints<T>{INDEX...});
}
#endif

template <class T, int OFFSET, size_t... I>
inline Vec<T> interleave(Vec<T> a, Vec<T> b, std::index_sequence<I...>) {
    return shuffle<T, (I % 2 * LANES<T> + I / 2 + OFFSET)...>(a, b);
}

template <class T, int DISTANCE, size_t... I>
inline Vec<T> rotate(Vec<T> a, std::index_sequence<I...>) {
    return shuffle<T, ((I + DISTANCE) % LANES<T>)...>(a, a);
}

// Rows become columns: log2(LANES) perfect shuffles of all rows.
template <class T, int STAGE = 1>
inline void transpose(Vec<T> (&rows)[LANES<T>]) {
    constexpr long L = LANES<T>;
    if constexpr (STAGE < L) {
        constexpr auto lanes = std::make_index_sequence<L>{};
        Vec<T> next[L];
        for (long i = 0; i < L / 2; ++i) {
            next[2 * i] = interleave<T, 0>(rows[i], rows[i + L / 2], lanes);
            next[2 * i + 1] = interleave<T, L / 2>(rows[i], rows[i + L / 2], lanes);
        }
        for (long i = 0; i < L; ++i) rows[i] = next[i];
        transpose<T, 2 * STAGE>(rows);
    }
}

template <class T, int DISTANCE = LANES<T> / 2>
inline T sum(Vec<T> v) {
    if constexpr (DISTANCE == 0) {
        return v[0];
    } else {
        return sum<T, DISTANCE / 2>(v + rotate<T, DISTANCE>(v, std::make_index_sequence<LANES<T>>{}));
    }
}

}  // namespace titans
