/* Runs grids: blocks one after another, the threads of a block as fibers on one thread of the host.
 *
 * A fiber runs until it ends or waits for its block or its warp; who is next among those that can go on is chosen by
 * the seed. The last lane to arrive at an operation of its warp does it for all lanes, whose operands wait on their
 * stacks. */
#include "impl.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define WARP 32u
#define CP_MAX 128u
#define PARTS 16u /* barriers of a block */
#define KERNELS_MAX 256u
#define SPOILED UINT64_C(0xffffffffffffffff) /* NaN, or an index that does not exist */
#define PAGE ((size_t)4096)
#define SHARED_AREA ((size_t)256 << 10) /* at least EMU_SHARED_MAX, whole pages */
#define STACK_BYTES ((size_t)256 << 10) /* untouched pages cost nothing; a page between two is never there */

typedef void (*warp_fn)(void *const *lanes, uint32_t mask);

emu_uint3 emu_thread_idx, emu_block_idx;
emu_dim emu_block_dim, emu_grid_dim;

typedef struct warp {
    uint32_t lanes, gone; /* that there are; of them, those that have ended */
    uint32_t arrived, mask;
    warp_fn fn;
    void *operand[WARP];
} warp;

typedef struct cp { /* a copy that has not been waited for */
    void *to;
    const void *from;
    uint32_t bytes, from_bytes, group;
} cp;

typedef struct fiber {
    void *sp;
    uint8_t *stack; /* its upper end; NULL: has not begun, or has ended */
    uint32_t index, n_cp, group;
    bool ended, waited; /* waited: for the kernels before this one */
    emu_uint3 idx;
} fiber;

static struct {
    const emu_grid *grid;
    fiber f[EMU_THREADS_MAX], *now;
    cp cp[EMU_THREADS_MAX][CP_MAX]; /* of each fiber */
    warp w[EMU_THREADS_MAX / WARP];
    uint32_t ready[EMU_THREADS_MAX], first, n_ready; /* a ring */
    uint32_t n, n_ended, waiting[EMU_THREADS_MAX], n_waiting;
    uint8_t *free_stacks[EMU_THREADS_MAX];
    uint32_t n_free;
    uint32_t order; /* 0 first come, 1 last come, 2 any */
    bool late_copies;
    struct parked {
        uint32_t fiber, parity;
        const void *what;
    } parked[EMU_THREADS_MAX]; /* that wait for a part of the block */
    uint32_t n_parked, arrived[PARTS];
    void *scheduler;
    uint8_t *shared; /* dynamic */
} b;

/* Saves what a called function must keep, and goes on where `to` was saved. */
void emu_switch(void **ret_sp, void *to);
__asm__(".text\n"
        ".globl emu_switch\n"
        ".hidden emu_switch\n"
        ".type emu_switch, @function\n"
        "emu_switch:\n"
        "    push %rbp\n"
        "    push %rbx\n"
        "    push %r12\n"
        "    push %r13\n"
        "    push %r14\n"
        "    push %r15\n"
        "    mov %rsp, (%rdi)\n"
        "    mov %rsi, %rsp\n"
        "    pop %r15\n"
        "    pop %r14\n"
        "    pop %r13\n"
        "    pop %r12\n"
        "    pop %rbx\n"
        "    pop %rbp\n"
        "    ret\n"
        ".size emu_switch, .-emu_switch\n");

void emu_fault(const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    (void)fprintf(stderr, "emulated GPU: ");
    if (b.now)
        (void)fprintf(stderr, "%s, block (%u, %u, %u), thread (%u, %u, %u): ", b.grid->name, emu_block_idx.x,
                      emu_block_idx.y, emu_block_idx.z, emu_thread_idx.x, emu_thread_idx.y, emu_thread_idx.z);
    (void)vfprintf(stderr, fmt, ap);
    (void)fprintf(stderr, "\n");
    va_end(ap);
    abort();
}

/* ---- who is next */

static void make_ready(uint32_t i)
{
    b.ready[(b.first + b.n_ready++) % EMU_THREADS_MAX] = i;
}

static uint32_t next(void)
{
    uint32_t *last = &b.ready[(b.first + b.n_ready - 1) % EMU_THREADS_MAX], i = *last;
    if (b.order == 0) {
        i = b.ready[b.first];
        b.first = (b.first + 1) % EMU_THREADS_MAX;
    } else if (b.order == 2) {
        uint32_t *any = &b.ready[(b.first + (uint32_t)(emu_random() % b.n_ready)) % EMU_THREADS_MAX];
        i = *any;
        *any = *last;
    }
    b.n_ready--;
    return i;
}

static void to_scheduler(void)
{
    emu_switch(&b.now->sp, b.scheduler);
}

/* ---- copies into shared memory */

static void do_copies(fiber *f, uint32_t before) /* of groups below */
{
    uint32_t n = 0;
    cp *all = b.cp[f->index];
    for (uint32_t i = 0; i < f->n_cp; i++) {
        const cp *c = &all[i];
        if (c->group >= before) {
            all[n++] = *c;
            continue;
        }
        memcpy(c->to, c->from, c->from_bytes);
        memset((uint8_t *)c->to + c->from_bytes, 0, c->bytes - c->from_bytes);
    }
    f->n_cp = n;
}

void emu_cp_async(void *to, const void *from, uint32_t bytes, uint32_t from_bytes);
void emu_cp_async(void *to, const void *from, uint32_t bytes, uint32_t from_bytes)
{
    fiber *f = b.now;
    if ((uintptr_t)to % bytes || (uintptr_t)from % bytes) emu_fault("cp.async of %u bytes is not aligned", bytes);
    if (from_bytes > bytes) emu_fault("cp.async reads %u bytes for %u", from_bytes, bytes);
    if (f->n_cp == CP_MAX) emu_fault("more than %u copies wait to be waited for", CP_MAX);
    b.cp[f->index][f->n_cp++] = (cp) { to, from, bytes, from_bytes, f->group };
    if (!b.late_copies) do_copies(f, UINT32_MAX);
}

void emu_cp_commit(void);
void emu_cp_commit(void)
{
    b.now->group++;
}

void emu_cp_wait(uint32_t left);
void emu_cp_wait(uint32_t left)
{
    if (b.now->group > left) do_copies(b.now, b.now->group - left);
}

bool emu_late(void)
{
    return b.late_copies;
}

/* ---- barriers of parts of a block */

static void wait_for(const void *what, uint32_t parity)
{
    b.parked[b.n_parked++] = (struct parked) { b.now->index, parity, what };
    to_scheduler();
}

/* Those that wait for it go on. */
static void wake(const void *what, uint32_t parity)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < b.n_parked; i++) {
        if (b.parked[i].what == what && b.parked[i].parity == parity)
            make_ready(b.parked[i].fiber);
        else
            b.parked[n++] = b.parked[i];
    }
    b.n_parked = n;
}

/* The kernel's eight bytes. */
typedef struct phase {
    uint16_t count, left;
    uint32_t nth;
} phase;

void emu_phase_init(uint64_t *bar, uint32_t count);
void emu_phase_init(uint64_t *bar, uint32_t count)
{
    phase p = { (uint16_t)count, (uint16_t)count, 0 };
    if (!count || count > EMU_THREADS_MAX) emu_fault("a barrier of %u threads", count);
    memcpy(bar, &p, sizeof p);
}

static phase phase_of(const uint64_t *bar)
{
    phase p;
    memcpy(&p, bar, sizeof p);
    if (!p.left || p.left > p.count || p.count > EMU_THREADS_MAX) emu_fault("a barrier that was not initialised");
    return p;
}

void emu_phase_arrive(uint64_t *bar);
void emu_phase_arrive(uint64_t *bar)
{
    phase p = phase_of(bar);
    if (--p.left == 0) {
        wake(bar, p.nth & 1u);
        p.left = p.count;
        p.nth++;
    }
    memcpy(bar, &p, sizeof p);
}

void emu_phase_wait(const uint64_t *bar, uint32_t parity);
void emu_phase_wait(const uint64_t *bar, uint32_t parity)
{
    if ((phase_of(bar).nth & 1u) == parity) wait_for(bar, parity);
}

void emu_part_sync(uint32_t id, uint32_t n);
void emu_part_sync(uint32_t id, uint32_t n)
{
    if (!id || id >= PARTS || !n || n % WARP) emu_fault("barrier %u of %u threads", id, n);
    if (++b.arrived[id] < n) {
        wait_for(&b.arrived[id], 0);
        return;
    }
    b.arrived[id] = 0;
    wake(&b.arrived[id], 0);
}

/* ---- fibers */

static void fiber_main(void)
{
    fiber *f = b.now;
    warp *w = &b.w[f->index / WARP];
    b.grid->run(b.grid->args);
    do_copies(f, UINT32_MAX);
    w->gone |= 1u << f->index % WARP;
    if (w->fn && w->mask & w->gone) emu_fault("ends while lanes of its warp wait for it");
    f->ended = true;
    b.n_ended++;
    to_scheduler();
}

/* Stacks that began at the same place of their pages would share few lines of the cache. */
static uint8_t *new_stack(void)
{
    static uint32_t n;
    uint8_t *p = mmap(NULL, STACK_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED || mprotect(p, PAGE, PROT_NONE)) emu_fault("out of memory for stacks");
    return p + STACK_BYTES - 64 - n++ * 576 % 32768;
}

static void begin(fiber *f)
{
    f->stack = b.n_free ? b.free_stacks[--b.n_free] : new_stack();
    /* After the return into fiber_main the stack is as it is after a call: 8 bytes below a multiple of 16. */
    void **top = (void **)(void *)f->stack;
    void (*entry)(void) = fiber_main;
    memcpy(top, &entry, sizeof entry);
    memset(top - 6, 0, 6 * sizeof *top);
    f->sp = top - 6;
}

void emu_barrier(void);
void emu_barrier(void)
{
    b.waiting[b.n_waiting++] = b.now->index;
    to_scheduler();
}

void emu_collective(uint32_t mask, warp_fn fn, void *mine);
void emu_collective(uint32_t mask, warp_fn fn, void *mine)
{
    uint32_t lane = b.now->index % WARP, bit = 1u << lane;
    warp *w = &b.w[b.now->index / WARP];
    if (!(mask & bit)) emu_fault("lane %u is not in its own mask %08x", lane, mask);
    mask &= w->lanes;
    if (mask & w->gone) emu_fault("waits for lanes %08x, which have ended", mask & w->gone);
    if (w->fn && (w->fn != fn || w->mask != mask)) emu_fault("lanes of a warp meet at different operations");
    w->fn = fn;
    w->mask = mask;
    w->operand[lane] = mine;
    w->arrived |= bit;
    if (w->arrived != mask) {
        to_scheduler();
        return;
    }
    fn(w->operand, mask);
    w->fn = NULL;
    w->arrived = 0;
    for (uint32_t i = 0; i < WARP; i++)
        if (mask >> i & 1u && i != lane) make_ready(b.now->index - lane + i);
    if (b.order == 0) return;
    make_ready(b.now->index);
    to_scheduler();
}

void emu_wait_for_stream(void);
void emu_check_waited(void);
void emu_wait_for_stream(void)
{
    b.now->waited = true;
}

/* Of a kernel that may begin early, by each thread at its end. */
void emu_check_waited(void)
{
    if (!b.now->waited) emu_fault("the kernel was launched early, and this thread ends without wait_for_stream()");
}

static void release_block(void)
{
    if (b.n_waiting + b.n_ended != b.n) emu_fault("threads wait for a barrier and for a warp: nobody can go on");
    for (uint32_t i = 0; i < b.n_waiting; i++) make_ready(b.waiting[i]);
    b.n_waiting = 0;
}

static void run_block(void)
{
    uint32_t n_warps = (b.n + WARP - 1) / WARP;
    b.first = b.n_ready = b.n_ended = b.n_waiting = b.n_parked = 0;
    memset(b.arrived, 0, sizeof b.arrived);
    emu_wg_begin();
    for (uint32_t i = 0; i < n_warps; i++)
        b.w[i] = (warp) { .lanes = b.n - i * WARP >= WARP ? ~0u : (1u << (b.n - i * WARP)) - 1 };
    emu_uint3 idx = { 0, 0, 0 };
    for (uint32_t i = 0; i < b.n; i++) {
        b.f[i] = (fiber) { .index = i, .idx = idx };
        b.ready[b.n_ready++] = i;
        if (++idx.x < emu_block_dim.x) continue;
        idx.x = 0;
        if (++idx.y < emu_block_dim.y) continue;
        idx.y = 0;
        idx.z++;
    }
    while (b.n_ended < b.n) {
        if (!b.n_ready) release_block();
        fiber *f = &b.f[next()];
        if (!f->stack) begin(f);
        b.now = f;
        emu_thread_idx = f->idx;
        emu_switch(&b.scheduler, f->sp);
        b.now = NULL;
        if (!f->ended) continue;
        b.free_stacks[b.n_free++] = f->stack;
        f->stack = NULL;
    }
    emu_wg_end();
}

/* ---- shared memory: all static shared variables lie in this section (emu/CMakeLists.txt) */
extern uint64_t __start_emu_shared[] __attribute__((visibility("hidden")));
extern uint64_t __stop_emu_shared[] __attribute__((visibility("hidden")));

/* What of them a kernel writes is learned from its first blocks, and now and then again: to fill all would take longer
 * than most kernels. */
typedef struct extent {
    const void *kernel;
    uint64_t *begin, *end;
    uint32_t launches;
} extent;

static extent extents[KERNELS_MAX];

static extent *extent_of(const void *kernel)
{
    uint32_t i = 0;
    while (i < KERNELS_MAX && extents[i].kernel && extents[i].kernel != kernel) i++;
    if (i == KERNELS_MAX) emu_fault("more than %u kernels", KERNELS_MAX);
    extents[i].kernel = kernel;
    return &extents[i];
}

__attribute__((no_sanitize("address"))) static void spoil(uint64_t *p, const uint64_t *end)
{
    for (; p < end; p++) *(volatile uint64_t *)p = SPOILED;
}

__attribute__((no_sanitize("address"))) static void learn(extent *x)
{
    uint64_t *p = __start_emu_shared, *end = __stop_emu_shared;
    while (p < end && *p == SPOILED) p++;
    while (end > p && end[-1] == SPOILED) end--;
    if (p == end) return;
    x->begin = !x->begin || p < x->begin ? p : x->begin;
    x->end = end > x->end ? end : x->end;
}

void *emu_dynamic_shared(void);
void *emu_dynamic_shared(void)
{
    return b.shared;
}

/* Dynamic shared memory ends where its page ends: what a kernel reads beyond is not there. */
static uint8_t *area;

static void new_shared(size_t bytes)
{
    if (!area) {
        area = mmap(NULL, SHARED_AREA + PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (area == MAP_FAILED || mprotect(area + SHARED_AREA, PAGE, PROT_NONE)) emu_fault("out of memory");
    }
    b.shared = area + SHARED_AREA - (bytes + 15) / 16 * 16;
    memset(b.shared, (int)(SPOILED & 255u), (bytes + 15) / 16 * 16);
}

/* Of dynamic shared memory alone. */
uint32_t emu_shared_address(const void *p);
uint32_t emu_shared_address(const void *p)
{
    const uint8_t *at = p;
    if (at < b.shared || at >= area + SHARED_AREA) emu_fault("%p is not in dynamic shared memory", p);
    return (uint32_t)(at - area);
}

const uint8_t *emu_shared_at(uint32_t address)
{
    if (area + address < b.shared || address >= SHARED_AREA)
        emu_fault("a product reads outside of the block's shared memory");
    return area + address;
}

static uint64_t coprime_step(uint64_t n)
{
    uint64_t step = 1 + emu_random() % n;
    for (;; step++) {
        uint64_t x = step, y = n;
        while (y) {
            uint64_t r = x % y;
            x = y;
            y = r;
        }
        if (x == 1) return step;
    }
}

void emu_run_grid(const emu_grid *g)
{
    uint64_t n = (uint64_t)g->grid.x * g->grid.y * g->grid.z, at = 0, step = 1;
    b.grid = g;
    b.n = g->block.x * g->block.y * g->block.z;
    emu_block_dim = g->block;
    emu_grid_dim = g->grid;
    b.order = emu.seed ? (uint32_t)(emu_random() % 3) : 0;
    b.late_copies = emu.seed % 2 == 0;
    if (b.order == 2) {
        at = emu_random() % n;
        step = coprime_step(n);
    }
    if (b.order == 1) {
        at = n - 1;
        step = n - 1;
    }
    extent *x = extent_of(g->kernel);
    bool learns = x->launches++ % 64 < 2;
    for (uint64_t i = 0; i < n; i++, at = (at + step) % n) {
        emu_block_idx = (emu_uint3) { (uint32_t)(at % g->grid.x), (uint32_t)(at / g->grid.x % g->grid.y),
                                      (uint32_t)(at / g->grid.x / g->grid.y) };
        if (i == 0 || g->shared) new_shared(g->shared);
        if (i == 0 && learns)
            spoil(__start_emu_shared, __stop_emu_shared);
        else
            spoil(x->begin, x->end);
        run_block();
        if (i == 0 && learns) learn(x);
    }
}
