/* The arithmetic of fit and extrapolate on CPUs. For a stripe of the window with its deltas D_t = W_t - W_0: Gram matrices
   and mixed directions; for a candidate: base and directions added up.

   BLAS is made for large matrices; a stripe has few rows (T, the steps) and many columns (weights). Here

       stored weights -> float32 deltas of TILE columns, which stay in the cache -> products, few rows at a time

   and columns in which no step differs from the base are left out where they are many: reinforcement learning in
   bfloat16 changes few weights. Products (products.h) are float32 within a tile, sums over tiles float64. kernels.py calls
   and says what the arguments are. For GCC (clang has what is used, but was not tried); where there was no compiler when
   relex was installed, numpy does the same in twice the time. */

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))

enum dtype { BF16, F16, F32 }; /* kernels.py numbers them in this order */

enum processor { ANY, AVX2, AVX512 }; /* what it can do; kernels.py numbers them in this order */

enum {
    TILE = 768,         /* columns: a row is 3 KiB, so that the seven or eight rows of a product stay in L1 */
    PITCH = TILE + 16,  /* floats from one row of a tile to the next: an odd number of cache lines, or rows share cache sets */
    STRIDE = 32,        /* columns that a product takes between two fetches: a cache line of 16-bit weights */
    GRANULE = 12,       /* rows of a tile: a multiple of the ROWS and COLUMNS of each product */
    TOGETHER = 4,       /* steps that a direction takes at a time */
    LINE = 64,          /* bytes of a cache line: where a tile starts in the middle of a vector, every other load takes two */
    FEW = 3,            /* columns are picked one by one where at most 1/FEW of them changed: else that takes longer */
};


/* ---- stored weights ---- */

INLINE float from_bits(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

INLINE uint32_t to_bits(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

INLINE float from_bfloat16(uint16_t bits) { return from_bits((uint32_t)bits << 16); }

INLINE float from_float16(uint16_t bits) {
    const uint32_t shifted = (uint32_t)(bits & 0x7fff) << 13, exponent = shifted & 0x0f800000;
    const uint32_t normal = shifted + (112u << 23);
    const float subnormal = from_bits(normal + (1u << 23)) - from_bits(113u << 23);
    const float finite = exponent ? from_bits(normal) : subnormal;
    const float magnitude = exponent == 0x0f800000 ? from_bits(normal + (112u << 23)) : finite; /* infinities, NaN */
    return bits & 0x8000 ? -magnitude : magnitude;
}

INLINE ptrdiff_t item_bytes(enum dtype dtype) { return dtype == F32 ? 4 : 2; }

INLINE float weight(const char *row, ptrdiff_t i, enum dtype dtype) {
    if (dtype == F32) return ((const float *)row)[i];
    const uint16_t bits = ((const uint16_t *)row)[i];
    return dtype == BF16 ? from_bfloat16(bits) : from_float16(bits);
}

/* Calls a function with its last argument, a dtype, as a constant: then its loops are vector code. */
#define FOR_DTYPE(dtype, call, ...) \
    do { \
        if (dtype == BF16) call(__VA_ARGS__, BF16); \
        else if (dtype == F16) call(__VA_ARGS__, F16); \
        else call(__VA_ARGS__, F32); \
    } while (0)

INLINE void widen(const char *row, ptrdiff_t n, float *restrict out, enum dtype dtype) {
    for (ptrdiff_t i = 0; i < n; i++) out[i] = weight(row, i, dtype);
}

INLINE void subtract(const char *row, const float *restrict base, ptrdiff_t n, float *restrict out, enum dtype dtype) {
    for (ptrdiff_t i = 0; i < n; i++) out[i] = weight(row, i, dtype) - base[i];
}

INLINE void subtract_at(const char *row, const float *restrict base, const uint16_t *restrict columns, ptrdiff_t count,
                        float *restrict out, enum dtype dtype) {
    for (ptrdiff_t i = 0; i < count; i++) out[i] = weight(row, columns[i], dtype) - base[columns[i]];
}

/* ---- columns that changed ---- */

INLINE uint32_t bits_of(const char *row, ptrdiff_t i, enum dtype dtype) {
    return dtype == F32 ? ((const uint32_t *)row)[i] : ((const uint16_t *)row)[i];
}

/* Notes the columns in which one of four rows differs from the base, bit by bit. */
INLINE void note_changes(const char *const rows[4], const char *base, ptrdiff_t n, uint16_t *restrict changed,
                         enum dtype dtype) {
    for (ptrdiff_t i = 0; i < n; i++) {
        const uint32_t was = bits_of(base, i, dtype);
        const uint32_t differ = (bits_of(rows[0], i, dtype) ^ was) | (bits_of(rows[1], i, dtype) ^ was)
                              | (bits_of(rows[2], i, dtype) ^ was) | (bits_of(rows[3], i, dtype) ^ was);
        changed[i] |= (uint16_t)(dtype == F32 ? differ | differ >> 16 : differ);
    }
}

INLINE int count_changes(const uint16_t *changed, ptrdiff_t n) {
    int count = 0;
    for (ptrdiff_t i = 0; i < n; i++) count += changed[i] != 0;
    return count;
}

INLINE void list_changes(const uint16_t *changed, ptrdiff_t n, uint16_t *restrict columns) {
    for (ptrdiff_t i = 0, count = 0; i < n; i++) {
        columns[count] = (uint16_t)i;
        count += changed[i] != 0;
    }
}

/* ---- products ---- */

/* T rows of weights, and the base's. */
struct stripe {
    const char *rows, *base;
    ptrdiff_t stride, steps, columns; /* bytes from row to row; T; weights */
    enum dtype dtype, base_dtype;
};

struct scratch {
    float base[TILE]; /* starts with a cache line, as the tile */
    float *tile;      /* rows x PITCH: deltas of columns, not always neighbours */
    double *sums;     /* rows x rows; the lower triangle counts */
    ptrdiff_t rows;   /* steps, rounded up to GRANULE; those beyond the steps stay zero */
    ptrdiff_t filled; /* columns of the tile */
    uint16_t changed[TILE]; /* of the columns in work: not zero where one changed */
    uint16_t at[TILE];      /* which ones did */
    uint32_t *taken;  /* all columns that were in a tile, ascending */
    ptrdiff_t count;  /* of them */
};

typedef float vector_4 __attribute__((vector_size(16), aligned(4)));

INLINE double sum_4(vector_4 lanes) { return (double)((lanes[0] + lanes[1]) + (lanes[2] + lanes[3])); }

/* 12 sums and 4 operands: the registers of AVX2. */
#define LANES 8
#define HALF 4
#define ROWS 3
#define COLUMNS 4
#include "products.h"

/* AVX-512 has 32 registers; 4 x 5, 4 x 6, 6 x 4, 5 x 5 and 3 x 8 were slower. */
#define LANES 16
#define HALF 8
#define ROWS 4
#define COLUMNS 4
#include "products.h"

INLINE void multiply_tile(struct scratch *own, const struct stripe *in, ptrdiff_t following, enum processor processor) {
    if (processor == AVX512) multiply_tile_16(own, in, following);
    else multiply_tile_8(own, in, following);
}

/* Finds the changed columns of a chunk of n; returns how many there are, or n where it is not worth picking them. */
INLINE ptrdiff_t pick(struct scratch *own, const struct stripe *in, const char *rows, const char *base, ptrdiff_t n) {
    if (in->dtype != in->base_dtype) return n;
    memset(own->changed, 0, sizeof own->changed);
    ptrdiff_t count = 0;
    for (ptrdiff_t t = in->steps; t > 0 && FEW * count <= n; t -= 4) { /* newest first: they tell of most changes */
        const char *four[4]; /* where there are no more than that, the first step again */
        for (ptrdiff_t i = 0; i < 4; i++) four[i] = rows + (t - 1 - i > 0 ? t - 1 - i : 0) * in->stride;
        FOR_DTYPE(in->dtype, note_changes, four, base, n, own->changed);
        count = count_changes(own->changed, n);
    }
    if (FEW * count > n) return n;
    list_changes(own->changed, n, own->at);
    return count;
}

/* Lists columns of the tile, until they are more than 1/FEW of the stripe: then nobody asks for them. Inlined, it made
   GCC 12 compile the products a tenth slower. */
__attribute__((noinline, cold)) static void list_taken(struct scratch *own, const struct stripe *in, ptrdiff_t start,
                                                       ptrdiff_t count, ptrdiff_t n) {
    const ptrdiff_t at = own->count;
    own->count += count;
    if (FEW * own->count > in->columns) return;
    if (count < n) for (ptrdiff_t i = 0; i < count; i++) own->taken[at + i] = (uint32_t)start + own->at[i];
    else for (ptrdiff_t i = 0; i < n; i++) own->taken[at + i] = (uint32_t)(start + i);
}

/* Puts the deltas of columns [start, start + n) into the tile, after multiplying it if it has no room for them. */
INLINE void add_deltas(struct scratch *own, const struct stripe *in, ptrdiff_t start, ptrdiff_t n,
                       enum processor processor) {
    const char *rows = in->rows + start * item_bytes(in->dtype);
    const ptrdiff_t count = pick(own, in, rows, in->base + start * item_bytes(in->base_dtype), n);
    if (own->filled + count > TILE) multiply_tile(own, in, start, processor);
    for (ptrdiff_t t = 0; t < in->steps; t++) {
        float *out = own->tile + t * PITCH + own->filled;
        const char *row = rows + t * in->stride;
        if (count < n) FOR_DTYPE(in->dtype, subtract_at, row, own->base, own->at, count, out);
        else FOR_DTYPE(in->dtype, subtract, row, own->base, n, out);
    }
    own->filled += count;
    list_taken(own, in, start, count, n);
}

INLINE double square_sum(const float *base, ptrdiff_t n) {
    vector_8 squares = {0};
    ptrdiff_t i = 0;
    for (; i + 8 <= n; i += 8) squares += load_8(base + i) * load_8(base + i);
    double rest = 0;
    for (; i < n; i++) rest += (double)base[i] * base[i];
    return sum_8(squares) + rest;
}

INLINE void gram_blocks(const struct stripe *in, ptrdiff_t block, double *grams, double *squares, struct scratch *own,
                        enum processor processor) {
    const ptrdiff_t steps = in->steps;
    for (ptrdiff_t start = 0; start < in->columns; start += block, grams += steps * steps, squares++) {
        const ptrdiff_t stop = start + block < in->columns ? start + block : in->columns;
        memset(own->sums, 0, sizeof(double) * (size_t)(own->rows * own->rows));
        *squares = 0;
        for (ptrdiff_t at = start; at < stop; at += TILE) {
            const ptrdiff_t n = at + TILE < stop ? TILE : stop - at;
            FOR_DTYPE(in->base_dtype, widen, in->base + at * item_bytes(in->base_dtype), n, own->base);
            *squares += square_sum(own->base, n);
            add_deltas(own, in, at, n, processor);
        }
        multiply_tile(own, in, stop, processor);
        for (ptrdiff_t i = 0; i < steps; i++)
            for (ptrdiff_t j = 0; j <= i; j++)
                grams[i * steps + j] = grams[j * steps + i] = own->sums[i * own->rows + j];
    }
}

/* ---- changed columns side by side ---- */

/* From left to right, because the row may begin where `out` does. */
INLINE void gather(const char *row, const uint32_t *columns, ptrdiff_t count, char *out, ptrdiff_t item) {
    if (item == 4) for (ptrdiff_t i = 0; i < count; i++) ((uint32_t *)out)[i] = ((const uint32_t *)row)[columns[i]];
    else for (ptrdiff_t i = 0; i < count; i++) ((uint16_t *)out)[i] = ((const uint16_t *)row)[columns[i]];
}

/* ---- directions ---- */

/* One after the other: multiplication and addition can then be fused in one way only, whatever the compiler makes of it. */
INLINE void add_weighted(const char *const rows[TOGETHER], const float *restrict base, const float weights[TOGETHER],
                         ptrdiff_t n, float *restrict out, enum dtype dtype) {
    for (ptrdiff_t i = 0; i < n; i++) {
        float sum = out[i];
        sum += (weight(rows[0], i, dtype) - base[i]) * weights[0];
        sum += (weight(rows[1], i, dtype) - base[i]) * weights[1];
        sum += (weight(rows[2], i, dtype) - base[i]) * weights[2];
        sum += (weight(rows[3], i, dtype) - base[i]) * weights[3];
        out[i] = sum;
    }
}

INLINE void mix(const struct stripe *in, const float *weights, ptrdiff_t directions, float *out) {
    float base[TILE];
    for (ptrdiff_t at = 0; at < in->columns; at += TILE) {
        const ptrdiff_t n = at + TILE < in->columns ? TILE : in->columns - at;
        FOR_DTYPE(in->base_dtype, widen, in->base + at * item_bytes(in->base_dtype), n, base);
        for (ptrdiff_t direction = 0; direction < directions; direction++) {
            float *direction_out = out + direction * in->columns + at;
            memset(direction_out, 0, sizeof(float) * (size_t)n);
            for (ptrdiff_t t = 0; t < in->steps; t += TOGETHER) {
                const char *rows[TOGETHER];
                float some[TOGETHER];
                for (ptrdiff_t i = 0; i < TOGETHER; i++) { /* beyond the last row: the last once more, with weight 0 */
                    const ptrdiff_t row = t + i < in->steps ? t + i : in->steps - 1;
                    rows[i] = in->rows + row * in->stride + at * item_bytes(in->dtype);
                    some[i] = t + i < in->steps ? weights[direction * in->steps + row] : 0;
                }
                FOR_DTYPE(in->dtype, add_weighted, rows, base, some, n, direction_out);
            }
        }
    }
}

/* ---- candidates ---- */

/* Values that are added with a coefficient; an observed step counts as its delta. */
struct term {
    const char *values;
    enum dtype dtype;
    int is_step;
    float coefficient;
};

INLINE void add_scaled(const char *row, const float *restrict base, float coefficient, ptrdiff_t n, float *restrict out,
                       enum dtype dtype) {
    for (ptrdiff_t i = 0; i < n; i++) out[i] += (weight(row, i, dtype) - base[i]) * coefficient;
}

INLINE uint16_t to_bfloat16(float value) { /* to nearest, ties to even; what is too large becomes infinite */
    const uint32_t bits = to_bits(value);
    const uint32_t rounded = bits + 0x7fff + (bits >> 16 & 1), not_a_number = bits | 0x00400000;
    return (uint16_t)(((bits & 0x7fffffff) > 0x7f800000 ? not_a_number : rounded) >> 16);
}

/* Return whether one of the stored values is not finite. */
INLINE uint32_t store_bfloat16(const float *restrict values, ptrdiff_t n, uint16_t *restrict out) {
    uint32_t found = 0;
    for (ptrdiff_t i = 0; i < n; i++) {
        out[i] = to_bfloat16(values[i]);
        found |= (out[i] & 0x7f80) == 0x7f80;
    }
    return found;
}

INLINE uint32_t store_float32(const float *restrict values, ptrdiff_t n, float *restrict out) {
    uint32_t found = 0;
    for (ptrdiff_t i = 0; i < n; i++) {
        out[i] = values[i];
        found |= (to_bits(values[i]) & 0x7f800000) == 0x7f800000;
    }
    return found;
}

/* Returns whether all of the result is finite. */
INLINE int add_terms(const char *base, enum dtype base_dtype, ptrdiff_t n, const struct term *terms, ptrdiff_t count,
                     char *out, enum dtype dtype) {
    static const float nothing[TILE];
    uint32_t not_finite = 0;
    for (ptrdiff_t at = 0; at < n; at += TILE) {
        const ptrdiff_t m = at + TILE < n ? TILE : n - at;
        float from[TILE], sums[TILE] = {0};
        FOR_DTYPE(base_dtype, widen, base + at * item_bytes(base_dtype), m, from);
        for (const struct term *term = terms; term < terms + count; term++) {
            const char *values = term->values + at * item_bytes(term->dtype);
            FOR_DTYPE(term->dtype, add_scaled, values, term->is_step ? from : nothing, term->coefficient, m, sums);
        }
        for (ptrdiff_t i = 0; i < m; i++) sums[i] += from[i];
        if (dtype == F32) not_finite |= store_float32(sums, m, (float *)out + at);
        else not_finite |= store_bfloat16(sums, m, (uint16_t *)out + at);
    }
    return !not_finite;
}

/* ---- the same code compiled for each kind of processor ---- */

#define COMPILE(kind, features) \
    features static void gram_blocks_##kind(const struct stripe *in, ptrdiff_t block, double *grams, double *squares, \
                                            struct scratch *own) { \
        gram_blocks(in, block, grams, squares, own, kind); \
    } \
    features static void mix_##kind(const struct stripe *in, const float *weights, ptrdiff_t directions, float *out) { \
        mix(in, weights, directions, out); \
    } \
    features static int add_terms_##kind(const char *base, enum dtype base_dtype, ptrdiff_t n, const struct term *terms, \
                                         ptrdiff_t count, char *out, enum dtype dtype) { \
        return add_terms(base, base_dtype, n, terms, count, out, dtype); \
    }

COMPILE(ANY, )

#ifndef MOST
#define MOST AVX512 /* tests lower it, to run what other processors would */
#endif

#if defined __x86_64__
COMPILE(AVX2, __attribute__((target("avx2,fma"))))
COMPILE(AVX512, __attribute__((target("avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,prefer-vector-width=512"))))

static enum processor this_processor(void) {
    const int avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    const int avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw")
                    && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    const enum processor found = avx512 ? AVX512 : avx2 ? AVX2 : ANY;
    return found < MOST ? found : MOST;
}
#define CALL(function, ...) \
    (this_processor() == AVX512 ? function##_AVX512(__VA_ARGS__) \
     : this_processor() == AVX2 ? function##_AVX2(__VA_ARGS__) : function##_ANY(__VA_ARGS__))
#else
static enum processor this_processor(void) { return ANY; }
#define CALL(function, ...) function##_ANY(__VA_ARGS__)
#endif

/* ---- what kernels.py calls ---- */

/* Grows with every change of what is declared here, in mapped.c and in Python, and of the order of sums (TILE, STRIDE, LANES): another
   one's library must not be called, nor give other bytes. */
int relex_kernels_version(void) { return 5; }

int relex_processor(void) { return this_processor(); }

static ptrdiff_t padded(ptrdiff_t steps) { return (steps + GRANULE - 1) / GRANULE * GRANULE; }

ptrdiff_t relex_scratch_bytes(ptrdiff_t steps) {
    const ptrdiff_t rows = padded(steps);
    return (ptrdiff_t)sizeof(struct scratch) + 2 * (LINE - 1) + rows * PITCH * (ptrdiff_t)sizeof(float)
         + rows * rows * (ptrdiff_t)sizeof(double);
}

static void *first_line(void *memory) { return (void *)(((uintptr_t)memory + LINE - 1) / LINE * LINE); }

/* Returns how many columns changed, if they are at most a third, and lists them in `taken`; else -1. "Changed" includes
   neighbours of many that did; all others hold the base's bytes at every step. taken: has room for that third.
   scratch: relex_scratch_bytes(in->steps), zero before its first use. */
ptrdiff_t relex_block_grams(const struct stripe *in, ptrdiff_t block, double *grams, double *squares, uint32_t *taken,
                            void *scratch) {
    struct scratch *own = first_line(scratch);
    own->rows = padded(in->steps);
    own->tile = first_line(own + 1);
    own->sums = (double *)(own->tile + own->rows * PITCH);
    own->filled = own->count = 0;
    own->taken = taken;
    CALL(gram_blocks, in, block, grams, squares, own);
    return FEW * own->count > in->columns ? -1 : own->count;
}

/* rows: T rows of `count` weights, one after the other; may begin where in->rows does. base: `count` weights. */
void relex_gather(const struct stripe *in, const uint32_t *columns, ptrdiff_t count, char *rows, char *base) {
    const ptrdiff_t item = item_bytes(in->dtype);
    for (ptrdiff_t t = 0; t < in->steps; t++)
        gather(in->rows + t * in->stride, columns, count, rows + t * count * item, item);
    gather(in->base, columns, count, base, item_bytes(in->base_dtype));
}

void relex_mix(const struct stripe *in, const float *weights, ptrdiff_t directions, float *out) {
    CALL(mix, in, weights, directions, out);
}

/* out: of BF16 or F32. */
int relex_add_terms(const char *base, int base_dtype, ptrdiff_t n, const struct term *terms, ptrdiff_t count, char *out,
                    int dtype) {
    return CALL(add_terms, base, base_dtype, n, terms, count, out, dtype);
}
