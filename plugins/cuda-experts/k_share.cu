/* EXPERTS of few rows, seen from the device: which experts it computes with, what it hands to the host, and the sum
 * with what the host gives back. */
#include "offer.cuh"

#define THREADS CU_OFFER_THREADS

static __global__ void __launch_bounds__(THREADS) rows_out_kernel(cu_offer a)
{
    copy_row(a.x.p + blockIdx.x * a.x.stride, a.mail_x + (size_t)blockIdx.x * a.n_cols, a.n_cols);
}

static __global__ void __launch_bounds__(THREADS) offer_kernel(cu_offer a)
{
    offer(a);
}

/* The rows of an offer that its kernel leaves to others. */
void cu_launch_rows_out(const cu_offer *a, cu_stream s)
{
    if (a->mail_x && a->n_rows > FEW_ROWS) CU_LAUNCH(rows_out_kernel, a->n_rows, THREADS, 0, s)(*a);
}

void cu_launch_offer(const cu_offer *a, cu_stream s)
{
    cu_launch_rows_out(a, s);
    CU_LAUNCH(offer_kernel, 1, THREADS, 0, s)(*a);
}

/* ---- the sum */

static __device__ bool host_has_come(const cu_sum &a)
{
    uint64_t down = *a.n_left ? load_flag(&a.mail->down) : CU_OVER;
    return down & CU_OVER || (uint32_t)down == *a.ticket;
}

/* The pairs of the device in ascending order, then what the host has. Each block waits by itself: while it does, its
 * part of the device's own sum is done already. */
static __global__ void __launch_bounds__(THREADS) sum_kernel(cu_sum a)
{
    __shared__ bool come;
    uint32_t c = blockIdx.y * blockDim.x + threadIdx.x, row = blockIdx.x;
    float sum = 0;
    for (uint32_t s = 0; c < a.n_cols && s < a.k; s++) {
        uint32_t p = a.slot_pair[row * a.k + s];
        if (p == NOWHERE) continue;
        float v = a.x[(size_t)p * a.n_cols + c];
        sum = __fadd_rn(sum, a.pair_weight ? __fmul_rn(a.pair_weight[p], v) : v);
    }
    if (*a.n_left) {
        if (threadIdx.x == 0) {
            uint64_t t0 = clock_ns();
            while (!(come = host_has_come(a)) && clock_ns() - t0 < a.patience_ns) {
            }
            if (!come) raise_flag(&a.mail->late, 1u);
        }
        __syncthreads();
        if (come && c < a.n_cols) sum = __fadd_rn(sum, load_fresh(a.mail_y + (size_t)row * a.n_cols + c));
    }
    if (c < a.n_cols) a.y.p[row * a.y.stride + c] = sum;
}

void cu_launch_sum(const cu_sum *a, cu_stream s)
{
    dim3 grid(a->n_rows, (a->n_cols + THREADS - 1) / THREADS);
    CU_LAUNCH_WHEN(host_has_come, sum_kernel, grid, THREADS, 0, s)(*a);
}

/* ---- over the link without the copy engine */

static __global__ void __launch_bounds__(THREADS) fetch_kernel(uint64_t *to, const uint64_t *from, size_t n)
{
    size_t i = blockIdx.x * (size_t)blockDim.x + threadIdx.x;
    let_next_begin();
    wait_for_stream();
    if (i < n) to[i] = from[i];
}

void cu_launch_fetch(void *to, const void *from, size_t bytes, cu_stream s)
{
    size_t n = bytes / sizeof(uint64_t);
    if (n) CU_LAUNCH_EARLY(fetch_kernel, (uint32_t)((n + THREADS - 1) / THREADS), THREADS, 0, s)
    ((uint64_t *)to, (const uint64_t *)from, n);
}

/* ---- the link's rate */

/* Reads n pieces of 16 bytes where they lie. */
static __global__ void __launch_bounds__(THREADS) read_kernel(const uint4 *p, size_t n, uint32_t *ret)
{
    uint32_t sum = 0;
    for (size_t i = blockIdx.x * (size_t)blockDim.x + threadIdx.x; i < n; i += (size_t)gridDim.x * blockDim.x) {
        uint4 v = p[i];
        sum += v.x ^ v.y ^ v.z ^ v.w;
    }
    if (sum == 1) *ret = sum; /* seldom: so that it is not left out */
}

void cu_launch_read(const uint8_t *p, size_t bytes, uint32_t *ret, cu_stream s)
{
    CU_LAUNCH(read_kernel, 128, THREADS, 0, s)((const uint4 *)p, bytes / 16, ret);
}
