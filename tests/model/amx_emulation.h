// AMX tiles in plain C++, so that CI can run the AMX code path of attention_cpu.cpp on any AVX-512 CPU.
// Included before the source by `-include`. Semantics: Intel SDM volume 2, TDPBF16PS, TILELOADD, TILESTORED.
// It says nothing about speed, nor about the real instructions' encoding or the permission to use them.
#pragma once
#include <immintrin.h>

#include <cstdint>
#include <cstring>

namespace amx_emulation {

// Poisoned between uses: code that forgets to configure, load or zero a tile computes NaN.
inline thread_local struct State {
    uint8_t tiles[8][16][64];
    bool configured = false;
} state;

inline void configure(const void* config) {
    const uint8_t* bytes = (const uint8_t*)config;
    bool whole = bytes[0] == 1 && bytes[1] == 0;
    for (int tile = 0; tile < 8; ++tile) {
        uint16_t row_bytes;
        std::memcpy(&row_bytes, bytes + 16 + 2 * tile, 2);
        whole = whole && row_bytes == 64 && bytes[48 + tile] == 16;
    }
    for (int i = 2; i < 16; ++i) whole = whole && bytes[i] == 0;  // reserved: hardware faults on others
    for (int i = 32; i < 48; ++i) whole = whole && bytes[i] == 0;
    for (int i = 56; i < 64; ++i) whole = whole && bytes[i] == 0;
    if (!whole) __builtin_trap();
    state.configured = true;
    std::memset(state.tiles, 0xff, sizeof state.tiles);
}

inline void release() { state.configured = false; }

inline uint8_t (&tile(int index))[16][64] {
    if (!state.configured) __builtin_trap();
    return state.tiles[index];
}

inline void zero(int index) { std::memset(tile(index), 0, 1024); }

inline void load(int index, const void* from, long stride) {
    for (int row = 0; row < 16; ++row) std::memcpy(tile(index)[row], (const char*)from + row * stride, 64);
}

inline void store(int index, void* to, long stride) {
    for (int row = 0; row < 16; ++row) std::memcpy((char*)to + row * stride, tile(index)[row], 64);
}

// C[m] += A[m, 2k] * B[k, even] + A[m, 2k+1] * B[k, odd], in this order; a word's low half is its even value.
inline void dot(int c, int a, int b) {
    const __m512i odd = _mm512_set1_epi32((int)0xffff0000);
    for (int m = 0; m < 16; ++m) {
        __m512 sum = _mm512_loadu_ps(tile(c)[m]);
        for (int k = 0; k < 16; ++k) {
            int word;
            std::memcpy(&word, tile(a)[m] + 4 * k, 4);
            const __m512i left = _mm512_set1_epi32(word), right = _mm512_loadu_si512(tile(b)[k]);
            sum = _mm512_fmadd_ps(_mm512_castsi512_ps(_mm512_slli_epi32(left, 16)),
                                  _mm512_castsi512_ps(_mm512_slli_epi32(right, 16)), sum);
            sum = _mm512_fmadd_ps(_mm512_castsi512_ps(_mm512_and_si512(left, odd)),
                                  _mm512_castsi512_ps(_mm512_and_si512(right, odd)), sum);
        }
        _mm512_storeu_ps(tile(c)[m], sum);
    }
}

}  // namespace amx_emulation

#undef _tile_loadd
#undef _tile_stored
#undef _tile_zero
#undef _tile_dpbf16ps
#define _tile_loadconfig amx_emulation::configure
#define _tile_release amx_emulation::release
#define _tile_zero amx_emulation::zero
#define _tile_loadd amx_emulation::load
#define _tile_stored amx_emulation::store
#define _tile_dpbf16ps amx_emulation::dot
