// Causal attention inside packed documents, forward and backward, for x86 CPUs.
//
// The idea is FlashAttention's (arXiv:2205.14135, 2307.08691): walk over blocks of queries and keys that
// fit the L2 cache, keep a running maximum and sum of the softmax, and never write the scores to memory.
// The backward pass computes the probabilities again from the saved log-sum-exp. Key blocks that lie
// before the document of every query of a block are never touched, so short documents cost less.
//
// Everything is computed transposed: scores_kq = K Qᵀ has keys as rows and queries as columns. One
// vector register then holds 16 queries, so maximum, sum and rescaling run down a column without ever
// adding across lanes, and the probabilities leave in the order in which the next matmul wants them:
//   forward   S = K Qᵀ        Oᵀ += Vᵀ P
//   backward  S = K Qᵀ        dP = V dOᵀ        dS = P (dP - delta), delta = row sums of dO * O
//             dV += P dO      dK += dS Q        dQᵀ += Kᵀ dS
//
// A matmul C[M,N] = A[M,depth] B[depth,N] wants its operands packed in two forms:
//   form A  rows of A as they are
//   form B  rows of B; with bf16, rows 2r and 2r+1 interleaved so that each pair fills one 32-bit word
// Transposing the 32-bit words of X in form A gives Xᵀ in form B, and the other way round. So loading
// rows, storing row pairs, and one transpose make all six operands above.
//
// One of three `Tiles` does it, chosen by the compiler's flags (attention_cpu.py):
//   AMX      bf16 operands in 16x16 tiles, summed in fp32: P and dS are rounded to bf16
//   PAIRS    bf16 operands as for AMX, multiplied in pairs by vdpbf16ps: on AMD, where it does twice the
//            FLOP/s of fp32 multiply-adds (Zen 4)
//   neither  fp32 operands and ordinary multiply-adds: on Intel without AMX, where vdpbf16ps was measured
//            at half their FLOP/s (92 against 185 GFLOP/s a core, family 6 model 207)
//
// A task is one (row of the batch, key-value head) with all its query heads, done by one thread in fixed
// order. So results depend neither on timing nor on the number of threads; at most rows * groups
// threads have work.
//
// Letters: T tokens, H query heads, G key-value heads, d head_dim (a multiple of 32). A suffix gives the
// rows and columns of a matrix, k and q being blocks of keys and queries; then A or B, its packed form.

#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <climits>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>

namespace {

using bf16 = uint16_t;
constexpr int LANES = 16;  // fp32 values in a vector register
constexpr float LOG2_E = 1.44269504f;

// ---------------------------------------------------------------------------- matmul on packed operands

#if defined(BESSEMER_AMX) || defined(BESSEMER_PAIRS)

// Operands in bf16, two rows of form B interleaved.
struct Bf16Operands {
    using Operand = bf16;
    static constexpr bool ONE_FORM = false;

    static void store_pair_A(Operand* to, int row, int columns, int column, __m512 first, __m512 second) {
        const __m512i pair = (__m512i)_mm512_cvtne2ps_pbh(second, first);  // first is the low half
        Operand* at = to + row * columns + column;
        _mm256_storeu_si256((__m256i*)at, _mm512_castsi512_si256(pair));
        _mm256_storeu_si256((__m256i*)(at + columns), _mm512_extracti64x4_epi64(pair, 1));
    }

    static void store_pair_B(Operand* to, int row, int columns, int column, __m512 first, __m512 second) {
        alignas(64) static constexpr uint16_t INTERLEAVE[32] = {
            0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
            8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
        const __m512i order = _mm512_load_si512(INTERLEAVE);
        const __m512i pair = (__m512i)_mm512_cvtne2ps_pbh(second, first);
        _mm512_storeu_si512(to + row * columns + 2 * column, _mm512_permutexvar_epi16(order, pair));
    }
};

#endif

#ifdef BESSEMER_AMX

// Tokens in a block of queries or keys; its scores stay in L1. With 32, tiles of C would
// be loaded and stored for every single step of depth. Reasoned, not measured: there was no AMX to measure on.
constexpr int BLOCK = 64;

struct Tiles : Bf16Operands {
    struct alignas(64) Config {
        uint8_t palette = 1, start_row = 0, reserved[14] = {};
        uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
        uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
    };
    static_assert(sizeof(Config) == 64);

    // Tile registers are private to a thread: each sets all eight to 16 rows of 64 bytes, and gives
    // them back so that other users of AMX in this process (oneDNN) start from a clean state.
    // Static, because gcc 12 says that loading reads 8 bytes, and may drop a local's other 56.
    Tiles() {
        static constexpr Config CONFIG;
        _tile_loadconfig(&CONFIG);
    }
    ~Tiles() { _tile_release(); }

    // Two by two tiles of C at once: each tile of A and B that is loaded is used twice.
    static void matmul(float* c, const bf16* a, const bf16* b, int m, int n, int depth, bool accumulate) {
        // gcc 12's tile intrinsics do not say that they touch memory: without a fence on both sides
        // the compiler may move the stores that fill A and B, or the loads that read C, across them.
        std::atomic_signal_fence(std::memory_order_seq_cst);
        for (int row = 0; row < m; row += 32)
            for (int column = 0; column < n; column += 32) {
                float* upper = c + row * n + column;
                float* lower = upper + 16 * n;
                if (accumulate) {
                    _tile_loadd(0, upper, n * 4); _tile_loadd(1, upper + 16, n * 4);
                    _tile_loadd(2, lower, n * 4); _tile_loadd(3, lower + 16, n * 4);
                } else {
                    _tile_zero(0); _tile_zero(1); _tile_zero(2); _tile_zero(3);
                }
                for (int k = 0; k < depth; k += 32) {
                    const bf16* a_tile = a + row * depth + k;
                    const bf16* b_tile = b + k * n + 2 * column;
                    _tile_loadd(4, a_tile, depth * 2); _tile_loadd(5, a_tile + 16 * depth, depth * 2);
                    _tile_loadd(6, b_tile, n * 4); _tile_loadd(7, b_tile + 32, n * 4);
                    _tile_dpbf16ps(0, 4, 6); _tile_dpbf16ps(1, 4, 7);
                    _tile_dpbf16ps(2, 5, 6); _tile_dpbf16ps(3, 5, 7);
                }
                _tile_stored(0, upper, n * 4); _tile_stored(1, upper + 16, n * 4);
                _tile_stored(2, lower, n * 4); _tile_stored(3, lower + 16, n * 4);
            }
        std::atomic_signal_fence(std::memory_order_seq_cst);
    }
};

#else

// Smaller blocks compute less that the causal mask throws away: 11-14 % faster than 64 (2 cores, T 256-1024).
constexpr int BLOCK = 32;

#ifdef BESSEMER_PAIRS

struct Tiles : Bf16Operands {
    // 8 x 32 of C stay in 16 registers: enough independent sums to hide the latency of the units.
    static void matmul(float* c, const bf16* a, const bf16* b, int m, int n, int depth, bool accumulate) {
        for (int row = 0; row < m; row += 8)
            for (int column = 0; column < n; column += 32) {
                __m512 sum[8][2];
#pragma GCC unroll 16
                for (int i = 0; i < 16; ++i) {
                    const float* at = c + (row + i / 2) * n + column + i % 2 * LANES;
                    sum[i / 2][i % 2] = accumulate ? _mm512_load_ps(at) : _mm512_setzero_ps();
                }
                for (int k = 0; k < depth; k += 2) {
                    const bf16* at = b + k * n + 2 * column;
                    const __m512bh left = (__m512bh)_mm512_load_si512(at);
                    const __m512bh right = (__m512bh)_mm512_load_si512(at + 2 * LANES);
#pragma GCC unroll 8
                    for (int i = 0; i < 8; ++i) {
                        int pair;
                        std::memcpy(&pair, a + (row + i) * depth + k, sizeof pair);
                        const __m512bh scale = (__m512bh)_mm512_set1_epi32(pair);
                        sum[i][0] = _mm512_dpbf16_ps(sum[i][0], scale, left);
                        sum[i][1] = _mm512_dpbf16_ps(sum[i][1], scale, right);
                    }
                }
#pragma GCC unroll 16
                for (int i = 0; i < 16; ++i)
                    _mm512_store_ps(c + (row + i / 2) * n + column + i % 2 * LANES, sum[i / 2][i % 2]);
            }
    }
};

#else

struct Tiles {
    using Operand = float;
    static constexpr bool ONE_FORM = true;  // forms A and B are the same plain rows

    static void store_pair_A(Operand* to, int row, int columns, int column, __m512 first, __m512 second) {
        _mm512_storeu_ps(to + row * columns + column, first);
        _mm512_storeu_ps(to + (row + 1) * columns + column, second);
    }

    static void store_pair_B(Operand* to, int row, int columns, int column, __m512 first, __m512 second) {
        store_pair_A(to, row, columns, column, first, second);
    }

    // 8 x 32 of C stay in 16 registers: enough independent sums to hide the latency of the FMA units.
    static void matmul(float* c, const float* a, const float* b, int m, int n, int depth, bool accumulate) {
        for (int row = 0; row < m; row += 8)
            for (int column = 0; column < n; column += 32) {
                __m512 sum[8][2];
#pragma GCC unroll 16
                for (int i = 0; i < 16; ++i) {
                    const float* at = c + (row + i / 2) * n + column + i % 2 * LANES;
                    sum[i / 2][i % 2] = accumulate ? _mm512_load_ps(at) : _mm512_setzero_ps();
                }
                for (int k = 0; k < depth; ++k) {
                    const float* at = b + k * n + column;
                    const __m512 left = _mm512_load_ps(at), right = _mm512_load_ps(at + LANES);
#pragma GCC unroll 8
                    for (int i = 0; i < 8; ++i) {
                        const __m512 scale = _mm512_set1_ps(a[(row + i) * depth + k]);
                        sum[i][0] = _mm512_fmadd_ps(scale, left, sum[i][0]);
                        sum[i][1] = _mm512_fmadd_ps(scale, right, sum[i][1]);
                    }
                }
#pragma GCC unroll 16
                for (int i = 0; i < 16; ++i)
                    _mm512_store_ps(c + (row + i / 2) * n + column + i % 2 * LANES, sum[i / 2][i % 2]);
            }
    }
};

#endif
#endif

using Operand = Tiles::Operand;
constexpr int PER_WORD = 4 / sizeof(Operand);  // operands in the 32-bit word that transposing moves

// -------------------------------------------------------------------------------- packing and unpacking

// 16x16 words in registers: swap the off-diagonal halves of ever larger squares.
template <int DISTANCE>
inline void swap_squares(__m512i (&rows)[16]) {
    alignas(64) int low[16], high[16];
    for (int lane = 0; lane < 16; ++lane) {
        low[lane] = lane & DISTANCE ? 16 + lane - DISTANCE : lane;
        high[lane] = lane & DISTANCE ? 16 + lane : lane + DISTANCE;
    }
    const __m512i take_low = _mm512_load_si512(low), take_high = _mm512_load_si512(high);
#pragma GCC unroll 16
    for (int row = 0; row < 16; ++row)
        if (!(row & DISTANCE)) {
            const __m512i first = rows[row], second = rows[row + DISTANCE];
            rows[row] = _mm512_permutex2var_epi32(first, take_low, second);
            rows[row + DISTANCE] = _mm512_permutex2var_epi32(first, take_high, second);
        }
}

// to[columns, rows] = from[rows, columns]ᵀ, in 32-bit words; both counts are multiples of 16.
void transpose_words(void* to_words, const void* from_words, int rows, int columns) {
    const uint32_t* from = (const uint32_t*)from_words;
    uint32_t* to = (uint32_t*)to_words;
    for (int row = 0; row < rows; row += 16)
        for (int column = 0; column < columns; column += 16) {
            __m512i square[16];
#pragma GCC unroll 16
            for (int i = 0; i < 16; ++i) square[i] = _mm512_loadu_si512(from + (row + i) * columns + column);
            swap_squares<1>(square);
            swap_squares<2>(square);
            swap_squares<4>(square);
            swap_squares<8>(square);
#pragma GCC unroll 16
            for (int i = 0; i < 16; ++i) _mm512_storeu_si512(to + (column + i) * rows + row, square[i]);
        }
}

// The tokens of one head in one row of the batch, rounded from and to fp32.
struct Rows {
    bf16* data;
    int64_t stride;
    int d;

    __m512 load(int token, int column) const {
        const __m256i narrow = _mm256_loadu_si256((const __m256i*)(data + token * stride + column));
        return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(narrow), 16));
    }
    void store(int token, int column, __m512 value) const {
        _mm256_storeu_si256((__m256i*)(data + token * stride + column), (__m256i)_mm512_cvtneps_pbh(value));
    }
};

// Pack BLOCK rows from `first` on; the `count` that exist are followed by zeros.
template <void (*STORE_PAIR)(Operand*, int, int, int, __m512, __m512)>
void pack(Operand* to, const Rows& rows, int first, int count) {
    for (int row = 0; row < BLOCK; row += 2)
        for (int column = 0; column < rows.d; column += LANES) {
            __m512 pair[2] = {_mm512_setzero_ps(), _mm512_setzero_ps()};
            for (int i = 0; i < 2 && row + i < count; ++i) pair[i] = rows.load(first + row + i, column);
            STORE_PAIR(to, row, rows.d, column, pair[0], pair[1]);
        }
}

constexpr auto pack_A = pack<Tiles::store_pair_A>;
constexpr auto pack_B = pack<Tiles::store_pair_B>;

void transposed_B(Operand* to, const Operand* form_A, int d) { transpose_words(to, form_A, BLOCK, d / PER_WORD); }
void transposed_A(Operand* to, const Operand* form_B, int d) { transpose_words(to, form_B, BLOCK / PER_WORD, d); }

void unpack(const Rows& rows, int first, int count, const float* from_qd, float scale) {
    for (int row = 0; row < count; ++row)
        for (int column = 0; column < rows.d; column += LANES) {
            const __m512 value = _mm512_loadu_ps(from_qd + row * rows.d + column);
            rows.store(first + row, column, _mm512_mul_ps(value, _mm512_set1_ps(scale)));
        }
}

// An array of one thread's working memory, aligned to cache lines.
template <typename T>
class Buffer {
  public:
    explicit Buffer(size_t count) : memory_((T*)std::aligned_alloc(64, (count * sizeof(T) + 63) / 64 * 64)) {
        if (!memory_) throw std::bad_alloc();  // ends the process: no exception can leave a parallel region
    }
    ~Buffer() { std::free(memory_); }
    Buffer(const Buffer&) = delete;
    Buffer& operator=(const Buffer&) = delete;
    operator T*() const { return memory_; }

  private:
    T* memory_;
};

// -------------------------------------------------------------------------------------- softmax pieces

// 2^x for x ≤ 0 with a relative error below 4e-6, where bf16 has 4e-3. Below 2^-64 (so also for -inf) it
// gives 0: that is lost beside the largest term anyway, and results that underflow take a slow path of the
// CPU, which made the whole softmax four times slower. NaN stays NaN, so that a diverged run is seen.
inline __m512 exp2_nonpositive(__m512 x) {
    const __mmask16 counts = _mm512_cmp_ps_mask(x, _mm512_set1_ps(-64.0f), _CMP_NLT_UQ);
    const __m512 whole = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    const __m512 part = _mm512_sub_ps(x, whole);
    __m512 y = _mm512_set1_ps(1.33336e-3f);  // Taylor of 2^part; |part| ≤ 1/2, coefficients ln(2)^n / n!
    y = _mm512_fmadd_ps(y, part, _mm512_set1_ps(9.61813e-3f));
    y = _mm512_fmadd_ps(y, part, _mm512_set1_ps(5.55041087e-2f));
    y = _mm512_fmadd_ps(y, part, _mm512_set1_ps(2.40226507e-1f));
    y = _mm512_fmadd_ps(y, part, _mm512_set1_ps(6.93147181e-1f));
    y = _mm512_fmadd_ps(y, part, _mm512_set1_ps(1.0f));
    return _mm512_maskz_scalef_ps(counts, y, whole);
}

// One block of queries, and the document start of each.
struct Queries {
    int first, count;  // position in the row; how many exist: fewer than BLOCK at the row's end
    alignas(64) int32_t starts[BLOCK];

    Queries(const int32_t* starts_T, int first_token, int num_tokens)
        : first(first_token), count(std::min(BLOCK, num_tokens - first_token)) {
        // A query beyond the end belongs to no document: it sees no key and adds nothing to gradients.
        for (int q = 0; q < BLOCK; ++q) starts[q] = q < count ? std::max(0, starts_T[first + q]) : INT_MAX;
    }
    int first_key_block() const { return starts[0] / BLOCK * BLOCK; }  // starts never decrease
};

// Set to -inf the scores of keys after the query or before its document.
void hide(float* scores_kq, int first_key, const Queries& queries) {
    if (first_key < queries.first && first_key >= queries.starts[BLOCK - 1]) return;  // none is hidden
    const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    for (int q = 0; q < BLOCK; q += LANES) {
        const __m512i position = _mm512_add_epi32(lane, _mm512_set1_epi32(queries.first + q));
        const __m512i start = _mm512_load_si512(queries.starts + q);
        for (int k = 0; k < BLOCK; ++k) {
            const __m512i key = _mm512_set1_epi32(first_key + k);
            const __mmask16 after = _mm512_cmpgt_epi32_mask(key, position);
            const __mmask16 hidden = after | _mm512_cmplt_epi32_mask(key, start);
            _mm512_mask_storeu_ps(scores_kq + k * BLOCK + q, hidden, _mm512_set1_ps(-INFINITY));
        }
    }
}

// ------------------------------------------------------------------------------------------- one thread

// A bf16 tensor [B, T, heads, d]; strides in elements, that of d is 1.
struct Tensor {
    bf16* data;
    int64_t row_stride, token_stride, head_stride;
};

// All that a call of this library works on; attention_cpu.py has the same struct.
struct Call {
    int64_t num_rows, num_tokens, num_heads, num_groups, head_dim;
    const int32_t* starts_BT;
    float* lse_BHT;  // log-sum-exp of each query's scores in units of log2, from forward to backward
    Tensor q, k, v, out;
    Tensor dout, dq, dk, dv;  // only of backward
};

// The memory of one thread, and what forward and backward share.
struct Worker {
    explicit Worker(const Call& c)
        : call(c), d(c.head_dim), scale(1.0f / std::sqrt((float)d)), padded((tokens() + BLOCK - 1) / BLOCK * BLOCK) {}

    int tokens() const { return call.num_tokens; }
    int count(int first) const { return std::min(BLOCK, tokens() - first); }
    Rows rows_of(const Tensor& tensor, int64_t row, int64_t head) const {
        return {tensor.data + row * tensor.row_stride + head * tensor.head_stride, tensor.token_stride, d};
    }
    float* lse_of(int64_t row, int64_t head) const { return call.lse_BHT + (row * call.num_heads + head) * tokens(); }

    // Run `step(queries, head)` for every block of every query head that shares key-value head `group`.
    template <typename Step>
    void for_each_query_block(int64_t row, int64_t group, const Step& step) const {
        const int64_t share = call.num_heads / call.num_groups;
        for (int64_t head = group * share; head < (group + 1) * share; ++head)
            for (int first = 0; first < tokens(); first += BLOCK)
                step(Queries(call.starts_BT + row * tokens(), first, tokens()), head);
    }

    const Call& call;
    const int d;
    const float scale;
    const size_t padded;  // tokens, rounded up to whole blocks
    Tiles tiles;
    Buffer<Operand> packed{size_t(BLOCK * d)}, q_dqB{size_t(BLOCK * d)};
    Buffer<float> scores_kq{BLOCK * BLOCK};
};

struct Forward : Worker {
    using Worker::Worker;

    void run(int64_t row, int64_t group) {
        const Rows k = rows_of(call.k, row, group), v = rows_of(call.v, row, group);
        for (int first = 0; first < tokens(); first += BLOCK) {
            pack_A(k_kdA + first * d, k, first, count(first));
            pack_B(packed, v, first, count(first));
            transposed_A(v_dkA + first * d, packed, d);
        }
        for_each_query_block(row, group, [&](const Queries& queries, int64_t head) {
            attend(queries, rows_of(call.q, row, head));
            finish(queries, rows_of(call.out, row, head), lse_of(row, head));
        });
    }

    void attend(const Queries& queries, const Rows& q) {
        pack_A(packed, q, queries.first, queries.count);
        transposed_B(q_dqB, packed, d);
        // Finite, so that a query that has not met its document yet computes -inf minus a number.
        std::fill_n((float*)top, BLOCK, -1e30f);
        std::fill_n((float*)sum, BLOCK, 0.0f);
        std::fill_n((float*)out_dq, BLOCK * d, 0.0f);
        for (int key = queries.first_key_block(); key <= queries.first; key += BLOCK) {
            tiles.matmul(scores_kq, k_kdA + key * d, q_dqB, BLOCK, BLOCK, d, false);
            hide(scores_kq, key, queries);
            softmax_step();
            tiles.matmul(out_dq, v_dkA + key * d, p_kqB, d, BLOCK, BLOCK, true);
        }
    }

    // Probabilities of a block of keys relative to the maximum so far; what is summed so far is rescaled.
    void softmax_step() {
        const __m512 factor = _mm512_set1_ps(scale * LOG2_E);
        for (int q = 0; q < BLOCK; q += LANES) {
            const __m512 old_top = _mm512_load_ps(top + q);
            __m512 new_top = _mm512_set1_ps(-INFINITY);
            for (int k = 0; k < BLOCK; ++k)
                new_top = _mm512_max_ps(new_top, _mm512_load_ps(scores_kq + k * BLOCK + q));
            new_top = _mm512_max_ps(old_top, _mm512_mul_ps(new_top, factor));
            const __m512 shrink = exp2_nonpositive(_mm512_sub_ps(old_top, new_top));
            __m512 new_sum = _mm512_mul_ps(_mm512_load_ps(sum + q), shrink);
            for (int k = 0; k < BLOCK; k += 2) {
                __m512 p[2];
                for (int i = 0; i < 2; ++i) {
                    const __m512 score = _mm512_load_ps(scores_kq + (k + i) * BLOCK + q);
                    p[i] = exp2_nonpositive(_mm512_fmsub_ps(score, factor, new_top));
                }
                new_sum = _mm512_add_ps(new_sum, _mm512_add_ps(p[0], p[1]));
                Tiles::store_pair_B(p_kqB, k, BLOCK, q, p[0], p[1]);
            }
            _mm512_store_ps(top + q, new_top);
            _mm512_store_ps(sum + q, new_sum);
            if (_mm512_cmpneq_ps_mask(new_top, old_top)) scale_out(q, shrink);
        }
    }

    void scale_out(int q, __m512 factor) {
        for (float* at = out_dq + q; at < out_dq + BLOCK * d; at += BLOCK)
            _mm512_store_ps(at, _mm512_mul_ps(_mm512_load_ps(at), factor));
    }

    void finish(const Queries& queries, const Rows& out, float* lse_T) {
        for (int q = 0; q < BLOCK; q += LANES)
            scale_out(q, _mm512_div_ps(_mm512_set1_ps(1.0f), _mm512_load_ps(sum + q)));
        transpose_words(out_qd, out_dq, d, BLOCK);
        unpack(out, queries.first, queries.count, out_qd, 1.0f);
        for (int q = 0; q < queries.count; ++q) lse_T[queries.first + q] = top[q] + std::log2(sum[q]);
    }

    Buffer<Operand> k_kdA{padded * d}, v_dkA{padded * d}, p_kqB{BLOCK * BLOCK};
    Buffer<float> out_dq{size_t(BLOCK * d)}, out_qd{size_t(BLOCK * d)};
    Buffer<float> top{BLOCK}, sum{BLOCK};  // of each query so far: largest score (log2), sum of exp2(score - top)
};

struct Backward : Worker {
    using Worker::Worker;

    void run(int64_t row, int64_t group) {
        const Rows k = rows_of(call.k, row, group), v = rows_of(call.v, row, group);
        for (int first = 0; first < tokens(); first += BLOCK) {
            pack_A(k_kdA + first * d, k, first, count(first));
            pack_A(v_kdA + first * d, v, first, count(first));
            pack_B(packed, k, first, count(first));
            transposed_A(k_dkA + first * d, packed, d);
        }
        std::fill_n((float*)dk_kd, padded * d, 0.0f);
        std::fill_n((float*)dv_kd, padded * d, 0.0f);
        for_each_query_block(row, group, [&](const Queries& queries, int64_t head) {
            pack_queries(queries, row, head);
            add_gradients(queries);
            transpose_words(dq_qd, dq_dq, d, BLOCK);
            unpack(rows_of(call.dq, row, head), queries.first, queries.count, dq_qd, scale);
        });
        unpack(rows_of(call.dk, row, group), 0, tokens(), dk_kd, scale);
        unpack(rows_of(call.dv, row, group), 0, tokens(), dv_kd, 1.0f);
    }

    void pack_queries(const Queries& queries, int64_t row, int64_t head) {
        const Rows q = rows_of(call.q, row, head), dout = rows_of(call.dout, row, head);
        const Rows out = rows_of(call.out, row, head);
        pack_A(packed, q, queries.first, queries.count);
        transposed_B(q_dqB, packed, d);
        pack_A(packed, dout, queries.first, queries.count);
        transposed_B(dout_dqB, packed, d);
        pack_B(q_qdB, q, queries.first, queries.count);
        pack_B(dout_qdB, dout, queries.first, queries.count);
        std::fill_n((float*)lse, BLOCK, 0.0f);
        std::fill_n((float*)delta, BLOCK, 0.0f);
        for (int i = 0; i < queries.count; ++i) {
            const int token = queries.first + i;
            __m512 sum = _mm512_setzero_ps();
            for (int column = 0; column < d; column += LANES)
                sum = _mm512_fmadd_ps(out.load(token, column), dout.load(token, column), sum);
            delta[i] = _mm512_reduce_add_ps(sum);
            lse[i] = lse_of(row, head)[token];
        }
    }

    void add_gradients(const Queries& queries) {
        std::fill_n((float*)dq_dq, BLOCK * d, 0.0f);
        for (int key = queries.first_key_block(); key <= queries.first; key += BLOCK) {
            tiles.matmul(scores_kq, k_kdA + key * d, q_dqB, BLOCK, BLOCK, d, false);
            tiles.matmul(dp_kq, v_kdA + key * d, dout_dqB, BLOCK, BLOCK, d, false);
            hide(scores_kq, key, queries);
            softmax_gradient();
            tiles.matmul(dv_kd + key * d, p_kqA, dout_qdB, BLOCK, d, BLOCK, true);
            tiles.matmul(dk_kd + key * d, ds_kqA, q_qdB, BLOCK, d, BLOCK, true);
            tiles.matmul(dq_dq, k_dkA + key * d, Tiles::ONE_FORM ? ds_kqA : ds_kqB, d, BLOCK, BLOCK, true);
        }
    }

    void softmax_gradient() {
        const __m512 factor = _mm512_set1_ps(scale * LOG2_E);
        for (int q = 0; q < BLOCK; q += LANES)
            for (int k = 0; k < BLOCK; k += 2) {
                __m512 p[2], ds[2];
                for (int i = 0; i < 2; ++i) {
                    const __m512 score = _mm512_load_ps(scores_kq + (k + i) * BLOCK + q);
                    const __m512 dp = _mm512_load_ps(dp_kq + (k + i) * BLOCK + q);
                    p[i] = exp2_nonpositive(_mm512_fmsub_ps(score, factor, _mm512_load_ps(lse + q)));
                    ds[i] = _mm512_mul_ps(p[i], _mm512_sub_ps(dp, _mm512_load_ps(delta + q)));
                }
                Tiles::store_pair_A(p_kqA, k, BLOCK, q, p[0], p[1]);
                Tiles::store_pair_A(ds_kqA, k, BLOCK, q, ds[0], ds[1]);
                if (!Tiles::ONE_FORM) Tiles::store_pair_B(ds_kqB, k, BLOCK, q, ds[0], ds[1]);
            }
    }

    Buffer<Operand> k_kdA{padded * d}, v_kdA{padded * d}, k_dkA{padded * d};
    Buffer<Operand> dout_dqB{size_t(BLOCK * d)}, q_qdB{size_t(BLOCK * d)}, dout_qdB{size_t(BLOCK * d)};
    Buffer<Operand> p_kqA{BLOCK * BLOCK}, ds_kqA{BLOCK * BLOCK}, ds_kqB{BLOCK * BLOCK};
    Buffer<float> dk_kd{padded * d}, dv_kd{padded * d}, dq_dq{size_t(BLOCK * d)}, dq_qd{size_t(BLOCK * d)};
    Buffer<float> dp_kq{BLOCK * BLOCK}, lse{BLOCK}, delta{BLOCK};
};

template <typename Direction>
void run_all(const Call& call) {
#pragma omp parallel
    {
        Direction worker(call);
#pragma omp for schedule(dynamic) collapse(2)
        for (int64_t row = 0; row < call.num_rows; ++row)
            for (int64_t group = 0; group < call.num_groups; ++group) worker.run(row, group);
    }
}

}  // namespace

// ------------------------------------------------------------------------------------ the C interface

#define EXPORT extern "C" __attribute__((visibility("default")))

// 0, or the errno with which Linux refused the tile registers (a process must ask for them once).
EXPORT int bessemer_attention_prepare() {
#ifdef BESSEMER_AMX
    constexpr int ARCH_REQ_XCOMP_PERM = 0x1023, XFEATURE_XTILEDATA = 18;
    return syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0 ? 0 : errno;
#else
    return 0;
#endif
}

EXPORT void bessemer_attention_forward(const Call* call) { run_all<Forward>(*call); }    // writes out, lse
EXPORT void bessemer_attention_backward(const Call* call) { run_all<Backward>(*call); }  // writes dq, dk, dv
