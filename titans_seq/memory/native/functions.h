// Functions of one number, by vector: exp, the normal distribution, and the activations with two derivatives.
//
// float64 is the precision to check with: it goes lane by lane through the standard library.
#pragma once

#include "vectors.h"

namespace titans {

enum class Activation { gelu = 0, silu = 1 };

template <class F>
inline Vec<double> by_lane(Vec<double> x, F function) {
    for (long i = 0; i < LANES<double>; ++i) x[i] = function(x[i]);
    return x;
}

template <class T>
inline Vec<T> within(Vec<T> x, T low, T high) {  // NaN stays
    x = x < splat(low) ? splat(low) : x;
    return x > splat(high) ? splat(high) : x;
}

inline Vec<double> exp(Vec<double> x) {
    return by_lane(x, [](double a) { return std::exp(a); });
}

// exp x = 2^n exp r with |r| <= log(2) / 2, and that by the polynomial of Cephes: 1e-7 relative; 0 below -87, bounded above 88.
inline Vec<float> exp(Vec<float> x) {
    constexpr float LOWEST = -87.0f, HIGHEST = 88.0f, ROUNDS = 12582912.0f;  // 1.5 2^23: adding it rounds to an integer
    Vec<float> bounded = within(x, LOWEST, HIGHEST);
    Vec<float> shifted = bounded * 1.44269504088896341f + ROUNDS;
    Vec<float> n = shifted - ROUNDS;
    Vec<float> r = bounded - n * 0.693359375f + n * 2.12194440e-4f;
    Vec<float> p = r * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * (r * r) + r + 1.0f;
    Ints<float> bits;
    std::memcpy(&bits, &shifted, sizeof bits);
    bits = (bits + (127 - 0x4b400000)) << 23;
    Vec<float> power;
    std::memcpy(&power, &bits, sizeof power);
    return x < splat(LOWEST) ? Vec<float>{} : p * power;
}

inline Vec<double> normal_cdf(Vec<double> z, Vec<double>) {
    return by_lane(z, [](double a) { return 0.5 * std::erfc(-a * 0.70710678118654752440); });
}

// P(Z <= z), given exp(-z^2 / 2): the tail is that times a polynomial in t = 1 / (1 + 0.21 |z|), fitted to a relative 2e-8 on |z| <= 14.
inline Vec<float> normal_cdf(Vec<float> z, Vec<float> bell) {
    Vec<float> t = 1.0f / (1.0f + 0.21f * (z < Vec<float>{} ? -z : z));
    Vec<float> p = t * -0.07165623946f + 0.2835882298f;
    p = p * t - 0.3302526888f;
    p = p * t + 0.3494002124f;
    p = p * t - 0.09392465452f;
    p = p * t + 0.1248724907f;
    p = p * t + 0.06919223137f;
    p = p * t + 0.08506884915f;
    p = p * t + 0.08371157619f;
    Vec<float> tail = bell * (p * t);
    return z < Vec<float>{} ? tail : 1.0f - tail;
}

// An activation's value, slope and curvature at z. Only what is used of them is computed.
template <class T>
struct Activated {
    Vec<T> value, slope, curvature;
};

template <class T>
inline Activated<T> gelu(Vec<T> z) {
    Vec<T> near = within(z, T(-40), T(40));  // beyond, the density is 0 and the product with it must not be infinite
    Vec<T> bell = exp(near * near * T(-0.5));
    Vec<T> cdf = normal_cdf(near, bell), density = bell * T(0.39894228040143267794);
    return {z * cdf, cdf + near * density, density * (T(2) - near * near)};
}

template <class T>
inline Activated<T> silu(Vec<T> z) {
    Vec<T> near = within(z, T(-700), T(700));
    Vec<T> gate = T(1) / (T(1) + exp(-near));
    Vec<T> rest = T(1) - gate;
    return {z * gate, gate * (T(1) + near * rest), gate * rest * (T(2) + near * (T(1) - T(2) * gate))};
}

// Of n numbers at z, n a multiple of the lanes. A pointer that is null is not written.
template <class T>
inline void activate(Activation activation, long n, const T* z, T* value, T* slope, T* curvature) {
    for (long i = 0; i < n; i += LANES<T>) {
        Activated<T> a = activation == Activation::gelu ? gelu<T>(load(z + i)) : silu<T>(load(z + i));
        store(value + i, a.value);
        if (slope) store(slope + i, a.slope);
        if (curvature) store(curvature + i, a.curvature);
    }
}

}  // namespace titans
