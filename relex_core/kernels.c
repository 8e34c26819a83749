/* The arithmetic of fit and extrapolate on CPUs. For a stripe of the window with its deltas D_t = W_t - W_0: Gram matrices
   and mixed directions; for a candidate: base and directions added up.

   BLAS is made for large matrices; a stripe has few rows (T, the steps) and many columns (weights). Here

       stored weights -> float32 deltas of TILE columns, which stay in the cache -> products, 3 x 4 rows at a time

   and columns in which no step differs from the base are left out where they are many: reinforcement learning in
   bfloat16 changes few weights. Products are float32 within a tile, sums over tiles float64. kernels.py is the caller
   and says what the arguments are. For GCC (clang has what is used, but was not tried); where there was no compiler when
   relex was installed, numpy does the same in twice the time. */

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))

enum dtype { BF16, F16, F32 }; /* kernels.py numbers them in this order */

enum {
    LANES = 8,          /* floats of a vector: AVX2's registers; where they are shorter, the compiler splits them */
    TILE = 768,         /* columns: a row is 3 KiB, so that the seven rows of a product stay in L1 */
    PITCH = TILE + 16,  /* floats from one row of a tile to the next: an odd number of cache lines, or rows share cache sets */
    ROWS = 3, COLUMNS = 4, /* of a product: 12 sums and 4 operands are the 16 registers of AVX2 */
    STRIDE = 32,        /* columns that a product takes between two fetches: a cache line of 16-bit weights */
    GRANULE = 12,       /* rows of a tile are a multiple of both */
    LINE = 64,          /* bytes of a cache line: where a tile starts in the middle of a vector, every other load takes two */
    FEW = 3,            /* columns are picked one by one where at most 1/FEW of them changed: else that takes longer */
};

typedef float vector __attribute__((vector_size(4 * LANES), aligned(4)));
typedef float half_vector __attribute__((vector_size(2 * LANES), aligned(4)));

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

INLINE vector load(const float *at) { return *(const vector *)at; }

INLINE double sum(vector lanes) {
    half_vector halves[2];
    memcpy(halves, &lanes, sizeof halves);
    const half_vector half = halves[0] + halves[1];
    return (double)((half[0] + half[1]) + (half[2] + half[3]));
}

/* Adds the products of ROWS rows at a with COLUMNS rows at b to the sums; n is a multiple of STRIDE. Meanwhile it fetches a
   row of what the next tile is made of: half of it where items have 4 bytes. */
INLINE void multiply(const float *a, const float *b, ptrdiff_t n, double *sums, ptrdiff_t pitch, const char *next) {
    vector products[ROWS][COLUMNS] = {0};
    for (ptrdiff_t k = 0; k < n; k += STRIDE) {
        __builtin_prefetch(next + 2 * k);
#pragma GCC unroll 4
        for (ptrdiff_t at = k; at < k + STRIDE; at += LANES) {
            vector left[ROWS];
#pragma GCC unroll 8
            for (int i = 0; i < ROWS; i++) left[i] = load(a + i * PITCH + at);
#pragma GCC unroll 8
            for (int j = 0; j < COLUMNS; j++) {
                const vector right = load(b + j * PITCH + at);
#pragma GCC unroll 8
                for (int i = 0; i < ROWS; i++) products[i][j] += left[i] * right;
            }
        }
    }
    for (int i = 0; i < ROWS; i++)
        for (int j = 0; j < COLUMNS; j++) sums[i * pitch + j] += sum(products[i][j]);
}

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

INLINE void multiply_tile(struct scratch *own, const struct stripe *in, ptrdiff_t following) {
    const ptrdiff_t n = (own->filled + STRIDE - 1) / STRIDE * STRIDE;
    ptrdiff_t fetched = 0;
    for (ptrdiff_t t = 0; t < in->steps; t++)
        for (ptrdiff_t k = own->filled; k < n; k++) own->tile[t * PITCH + k] = 0;
    for (ptrdiff_t i = 0; i < in->steps; i += ROWS)
        for (ptrdiff_t j = 0; j < i + ROWS && j < in->steps; j += COLUMNS) {
            const char *next = (const char *)own->tile; /* is there already */
            if (fetched < in->steps && following < in->columns)
                next = in->rows + fetched++ * in->stride + following * item_bytes(in->dtype);
            multiply(own->tile + i * PITCH, own->tile + j * PITCH, n, own->sums + i * own->rows + j, own->rows, next);
        }
    own->filled = 0;
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
INLINE void add_deltas(struct scratch *own, const struct stripe *in, ptrdiff_t start, ptrdiff_t n) {
    const char *rows = in->rows + start * item_bytes(in->dtype);
    const ptrdiff_t count = pick(own, in, rows, in->base + start * item_bytes(in->base_dtype), n);
    if (own->filled + count > TILE) multiply_tile(own, in, start);
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
    vector squares = {0};
    ptrdiff_t i = 0;
    for (; i + LANES <= n; i += LANES) squares += load(base + i) * load(base + i);
    double rest = 0;
    for (; i < n; i++) rest += (double)base[i] * base[i];
    return sum(squares) + rest;
}

INLINE void gram_blocks(const struct stripe *in, ptrdiff_t block, double *grams, double *squares, struct scratch *own) {
    const ptrdiff_t steps = in->steps;
    for (ptrdiff_t start = 0; start < in->columns; start += block, grams += steps * steps, squares++) {
        const ptrdiff_t stop = start + block < in->columns ? start + block : in->columns;
        memset(own->sums, 0, sizeof(double) * (size_t)(own->rows * own->rows));
        *squares = 0;
        for (ptrdiff_t at = start; at < stop; at += TILE) {
            const ptrdiff_t n = at + TILE < stop ? TILE : stop - at;
            FOR_DTYPE(in->base_dtype, widen, in->base + at * item_bytes(in->base_dtype), n, own->base);
            *squares += square_sum(own->base, n);
            add_deltas(own, in, at, n);
        }
        multiply_tile(own, in, stop);
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
INLINE void add_weighted(const char *const rows[COLUMNS], const float *restrict base, const float weights[COLUMNS],
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
            for (ptrdiff_t t = 0; t < in->steps; t += COLUMNS) {
                const char *rows[COLUMNS];
                float some[COLUMNS];
                for (ptrdiff_t i = 0; i < COLUMNS; i++) { /* beyond the last row: the last once more, with weight 0 */
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

/* ---- what kernels.py calls: the same code compiled for AVX2 and for what every processor has ---- */

#if defined __x86_64__ && !defined PORTABLE
#define AVX2 __attribute__((target("avx2,fma")))
AVX2 static void gram_blocks_avx2(const struct stripe *in, ptrdiff_t block, double *grams, double *squares,
                                  struct scratch *own) {
    gram_blocks(in, block, grams, squares, own);
}
AVX2 static void mix_avx2(const struct stripe *in, const float *weights, ptrdiff_t directions, float *out) {
    mix(in, weights, directions, out);
}
AVX2 static int add_terms_avx2(const char *base, enum dtype base_dtype, ptrdiff_t n, const struct term *terms,
                               ptrdiff_t count, char *out, enum dtype dtype) {
    return add_terms(base, base_dtype, n, terms, count, out, dtype);
}
static int has_avx2(void) { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }
#else
#define gram_blocks_avx2 gram_blocks
#define mix_avx2 mix
#define add_terms_avx2 add_terms
static int has_avx2(void) { return 0; }
#endif

/* Grows with every change of what is declared here and in kernels.py, and of the order of sums (TILE, STRIDE, ROWS): another
   one's library must not be called, nor give other bytes. */
int relex_kernels_version(void) { return 3; }

int relex_uses_avx2(void) { return has_avx2(); }

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
    if (has_avx2()) gram_blocks_avx2(in, block, grams, squares, own);
    else gram_blocks(in, block, grams, squares, own);
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
    if (has_avx2()) mix_avx2(in, weights, directions, out);
    else mix(in, weights, directions, out);
}

/* out: of BF16 or F32. */
int relex_add_terms(const char *base, int base_dtype, ptrdiff_t n, const struct term *terms, ptrdiff_t count, char *out,
                    int dtype) {
    return has_avx2() ? add_terms_avx2(base, base_dtype, n, terms, count, out, dtype)
                      : add_terms(base, base_dtype, n, terms, count, out, dtype);
}
