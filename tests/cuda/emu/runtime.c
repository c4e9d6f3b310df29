/* Streams, events, errors: what is asked for is queued; when it is done is the seed's choice. See emu.h. */
#include "impl.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

emu_control emu;

static pthread_mutex_t lock;
static pthread_once_t once = PTHREAD_ONCE_INIT;
static bool from_environment; /* the seed: every stream's maker gets the next one */
static uint64_t state;
static cudaError_t last_error;

enum { OP_COPY, OP_SET, OP_KERNEL, OP_HOST, OP_RECORD, OP_WAIT };

typedef struct op {
    struct op *next;
    uint32_t kind;
    size_t more_bytes;
    union {
        struct {
            uint8_t *to;
            const uint8_t *from;
            size_t to_stride, from_stride, width, rows;
        } copy;
        struct {
            uint8_t *p;
            size_t bytes;
            int v;
        } set;
        emu_grid kernel;
        struct {
            cudaHostFn_t fn;
            void *arg;
        } host;
        struct {
            struct CUstream_st *s;
            uint64_t at;
        } wait;
    } u;
    uint64_t more[]; /* arguments of a kernel; what was in pageable memory */
} op;

/* Never freed: an event may name it. */
struct CUstream_st {
    struct CUstream_st *older;
    uint32_t id;
    op *head, **tail;
    uint64_t issued, done;
    struct CUgraph_st *capture; /* NULL: what is asked for is done */
};

struct CUgraph_st {
    op *head, **tail;
};

struct CUevent_st {
    struct CUstream_st *s; /* NULL: never recorded */
    uint64_t at;           /* complete when so much of the stream is done */
};

static struct CUstream_st legacy = { .tail = &legacy.head }, *streams = &legacy;

static void begin(void)
{
    pthread_mutexattr_t a;
    const char *seed = getenv("CUDA_EMU_SEED"), *lose = getenv("CUDA_EMU_LOSE_LAUNCH");
    if (pthread_mutexattr_init(&a) || pthread_mutexattr_settype(&a, PTHREAD_MUTEX_RECURSIVE) ||
        pthread_mutex_init(&lock, &a))
        emu_fault("no lock");
    from_environment = seed != NULL;
    emu.seed = seed ? strtoull(seed, NULL, 10) - 1 : 0;
    emu.lose_launch = lose ? strtoull(lose, NULL, 10) : 0;
}

void emu_lock(void)
{
    if (pthread_once(&once, begin) || pthread_mutex_lock(&lock)) emu_fault("no lock");
}

void emu_unlock(void)
{
    if (pthread_mutex_unlock(&lock)) emu_fault("no lock");
}

uint64_t emu_random(void)
{
    state = state * 6364136223846793005u + 1442695040888963407u;
    return state >> 33;
}

cudaError_t emu_may_fail(cudaError_t how)
{
    if (!emu.lost && ++emu.calls == emu.fail_at) {
        emu.lost = emu.lose;
        return emu.lost ? cudaErrorLaunchFailure : how;
    }
    return emu.lost ? cudaErrorLaunchFailure : cudaSuccess;
}

/* ---- doing what is queued */

static void do_copy(const op *o)
{
    for (size_t r = 0; r < o->u.copy.rows; r++)
        memmove(o->u.copy.to + r * o->u.copy.to_stride, o->u.copy.from + r * o->u.copy.from_stride, o->u.copy.width);
}

static void do_op(op *o)
{
    if (o->kind == OP_SET && o->u.set.v == 0 && emu_clear_new(o->u.set.p, o->u.set.bytes)) return;
    if (o->kind <= OP_KERNEL) emu_spoil();
    switch (o->kind) {
    case OP_COPY: do_copy(o); break;
    case OP_SET: memset(o->u.set.p, o->u.set.v, o->u.set.bytes); break;
    case OP_KERNEL: emu_run_grid(&o->u.kernel); break;
    case OP_HOST: o->u.host.fn(o->u.host.arg); break;
    default: break; /* RECORD, WAIT: being done is all */
    }
}

/* A kernel that waits for the host, which has not come yet. It would wait for ever where the host waits for it: then
 * it runs after a while and has to give up by itself. */
static bool waits_for_host(const op *o)
{
    return o->kind == OP_KERNEL && o->u.kernel.ready && !emu.lost && !emu.impatient &&
           !o->u.kernel.ready(o->u.kernel.args);
}

/* The first of the queue; false: it waits for another stream or for the host, or there is none. */
static bool step(struct CUstream_st *s)
{
    op *o = s->head;
    if (!o || (o->kind == OP_WAIT && o->u.wait.s->done < o->u.wait.at) || waits_for_host(o)) return false;
    if (!(s->head = o->next)) s->tail = &s->head;
    if (!emu.lost) do_op(o);
    s->done++;
    free(o);
    return true;
}

/* As much of s as is needed, and of others what that waits for: who waits was queued after what it waits for. */
static void finish(struct CUstream_st *s, uint64_t at)
{
    if (s->capture) emu_fault("the host waits for a stream that is captured");
    emu_memory_open();
    while (s->done < at) {
        if (step(s)) continue;
        if (waits_for_host(s->head)) emu_fault("%s waits for the host, which waits for it", s->head->u.kernel.name);
        finish(s->head->u.wait.s, s->head->u.wait.at);
    }
    emu_memory_close();
}

void emu_finish_all(void)
{
    for (struct CUstream_st *s = streams; s; s = s->older) finish(s, s->issued);
}

/* 0: late; 1: at once; others: late, at once, or one kind for every second stream, and by chance in half of them. */
static bool eager(const struct CUstream_st *s)
{
    uint32_t how = emu.seed < 2 ? (uint32_t)emu.seed : (uint32_t)(emu.seed * 0x9e3779b97f4a7c15u >> 62);
    return how == 1 || (how == 2 && s->id % 2) || (how == 3 && s->id % 2 == 0);
}

/* After every call: what runs at once, and what runs by chance. */
static void some_progress(void)
{
    if (emu.seed == 0) return;
    emu_memory_open();
    for (bool any = true; any;) {
        any = false;
        for (struct CUstream_st *s = streams; s; s = s->older)
            while (eager(s) && step(s)) any = true;
    }
    uint64_t n = emu.seed >= 4 && emu.seed % 2 ? emu_random() % 4 : 0;
    for (struct CUstream_st *s = streams; s && n; s = s->older)
        if (emu_random() % 2)
            for (; n && step(s); n--) {
            }
    emu_memory_close();
}

static op *new_op(uint32_t kind, size_t more)
{
    op *o = calloc(1, sizeof *o + more);
    if (!o) emu_fault("out of memory");
    o->kind = kind;
    o->more_bytes = more;
    return o;
}

static void queue(cudaStream_t stream, op *o)
{
    struct CUstream_st *s = stream ? stream : &legacy;
    if (s->capture) {
        if (o->kind > OP_KERNEL) emu_fault("what is captured is more than kernels and copies");
        *s->capture->tail = o;
        s->capture->tail = &o->next;
        return;
    }
    *s->tail = o;
    s->tail = &o->next;
    s->issued++;
    some_progress();
}

void emu_seed(uint64_t seed)
{
    emu_lock();
    emu_finish_all();
    emu_memory_shut();
    emu.seed = seed;
    state = seed;
    from_environment = false;
    emu_unlock();
}

/* ---- copies */

static size_t extent(size_t stride, size_t width, size_t rows)
{
    return rows ? (rows - 1) * stride + width : 0;
}

static cudaError_t copy(void *to, size_t to_stride, const void *from, size_t from_stride, size_t width, size_t rows,
                        enum cudaMemcpyKind kind, cudaStream_t stream, bool wait)
{
    struct CUstream_st *s = stream ? stream : &legacy;
    size_t to_bytes = extent(to_stride, width, rows), from_bytes = extent(from_stride, width, rows);
    if (!to_bytes || !width) return cudaSuccess;
    bool to_dev = emu_touches_device(to), from_dev = emu_touches_device(from);
    if (rows > 1 && (to_stride < width || from_stride < width)) return cudaErrorInvalidValue;
    if (kind != cudaMemcpyDefault && (to_dev != (kind & 1) || from_dev != kind >> 1)) return cudaErrorInvalidValue;
    if ((to_dev && !emu_is_device(to, to_bytes)) || (from_dev && !emu_is_device(from, from_bytes)))
        return cudaErrorInvalidValue;
    bool staged = !from_dev && !emu_is_pinned(from, from_bytes); /* read now, into the driver's own buffer */
    if (s->capture && (staged || (!to_dev && !emu_is_pinned(to, to_bytes))))
        emu_fault("a copy with plain memory of the host is captured");
    op *o = new_op(OP_COPY, staged ? from_bytes : 0);
    o->u.copy.to = to;
    o->u.copy.from = from;
    o->u.copy.to_stride = to_stride;
    o->u.copy.from_stride = from_stride;
    o->u.copy.width = width;
    o->u.copy.rows = rows;
    if (staged) {
        for (size_t r = 0; r < rows; r++)
            memcpy((uint8_t *)o->more + r * from_stride, (const uint8_t *)from + r * from_stride, width);
        o->u.copy.from = (const uint8_t *)o->more;
    }
    emu.n_copies++;
    queue(s, o);
    if (!to_dev && (wait || !emu_is_pinned(to, to_bytes))) finish(s, s->issued);
    if (wait && !from_dev && !staged) finish(s, s->issued); /* from pinned memory: it may be written again */
    return cudaSuccess;
}

cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, enum cudaMemcpyKind kind, cudaStream_t s)
{
    return cudaMemcpy2DAsync(to, bytes, from, bytes, bytes, 1, kind, s);
}

cudaError_t cudaMemcpy2DAsync(void *to, size_t to_stride, const void *from, size_t from_stride, size_t width,
                              size_t rows, enum cudaMemcpyKind kind, cudaStream_t s)
{
    emu_lock();
    cudaError_t rc = emu_may_fail(cudaErrorUnknown);
    if (!rc) rc = copy(to, to_stride, from, from_stride, width, rows, kind, s, false);
    emu_unlock();
    return rc;
}

cudaError_t cudaMemcpy(void *to, const void *from, size_t bytes, enum cudaMemcpyKind kind)
{
    emu_lock();
    cudaError_t rc = emu_may_fail(cudaErrorUnknown);
    if (!rc) rc = copy(to, bytes, from, bytes, bytes, 1, kind, NULL, true);
    emu_unlock();
    return rc;
}

cudaError_t cudaMemsetAsync(void *p, int v, size_t bytes, cudaStream_t s)
{
    emu_lock();
    cudaError_t rc = emu_may_fail(cudaErrorUnknown);
    if (!rc && bytes && !emu_is_device(p, bytes)) rc = cudaErrorInvalidValue;
    if (!rc && bytes) {
        op *o = new_op(OP_SET, 0);
        o->u.set.p = p;
        o->u.set.bytes = bytes;
        o->u.set.v = v;
        queue(s, o);
    }
    emu_unlock();
    return rc;
}

cudaError_t cudaMemset(void *p, int v, size_t bytes)
{
    return cudaMemsetAsync(p, v, bytes, NULL);
}

/* ---- launches */

/* Static tables of kernels that may have more dynamic shared memory than 48 KiB. */
static struct {
    const void *kernel;
    size_t bytes;
} allowed[256];
static uint32_t n_allowed;

cudaError_t emu_func_attribute(const void *kernel, enum cudaFuncAttribute a, int value);
cudaError_t emu_func_attribute(const void *kernel, enum cudaFuncAttribute a, int value)
{
    uint32_t i = 0;
    emu_lock();
    cudaError_t rc = emu_may_fail(cudaErrorInvalidValue);
    if (!rc && (a != cudaFuncAttributeMaxDynamicSharedMemorySize || value < 0 || (unsigned)value > EMU_SHARED_MAX))
        rc = cudaErrorInvalidValue;
    while (i < n_allowed && allowed[i].kernel != kernel) i++;
    if (!rc && i == sizeof allowed / sizeof allowed[0]) emu_fault("too many kernels");
    if (!rc) {
        allowed[i].kernel = kernel;
        allowed[i].bytes = (size_t)value;
        n_allowed += i == n_allowed;
    }
    emu_unlock();
    return rc;
}

static bool fits(const emu_grid *g)
{
    uint64_t threads = (uint64_t)g->block.x * g->block.y * g->block.z;
    size_t most = 48 << 10;
    for (uint32_t i = 0; i < n_allowed; i++)
        if (allowed[i].kernel == g->kernel && allowed[i].bytes > most) most = allowed[i].bytes;
    return threads && threads <= EMU_THREADS_MAX && g->block.z <= 64 && g->grid.x && g->grid.y && g->grid.z &&
           g->grid.x <= INT32_MAX && g->grid.y <= 65535 && g->grid.z <= 65535 && g->shared <= most;
}

/* What looks like the address of plain memory of the host, and is one. */
static void look_for_host_pointers(const char *name, const uint64_t *words, size_t n)
{
    for (size_t i = 1; i < n; i++) { /* the first is the kernel */
        void *p = (void *)(uintptr_t)words[i];
        unsigned char there;
        if (words[i] >> 32 < 0x5500 || words[i] >> 47 || emu_touches_device(p) || emu_is_pinned(p, 1)) continue;
        if (mincore((void *)(words[i] & ~(uint64_t)4095), 1, &there) == 0)
            emu_fault("%s gets %p, which is plain memory of the host", name, p);
    }
}

void emu_launch(const char *name, const void *kernel, emu_dim grid, emu_dim block, size_t shared, cudaStream_t s,
                void (*run)(void *), bool (*ready)(void *), const void *args, size_t bytes);
void emu_launch(const char *name, const void *kernel, emu_dim grid, emu_dim block, size_t shared, cudaStream_t s,
                void (*run)(void *), bool (*ready)(void *), const void *args, size_t bytes)
{
    emu_lock();
    cudaError_t rc = emu_may_fail(cudaErrorUnknown);
    op *o = new_op(OP_KERNEL, bytes);
    o->u.kernel = (emu_grid) { name, kernel, run, ready, o->more, grid, block, shared };
    memcpy(o->more, args, bytes);
    if (!rc && !fits(&o->u.kernel)) rc = cudaErrorInvalidConfiguration;
    if (rc) {
        last_error = rc;
        free(o);
    } else {
        look_for_host_pointers(name, o->more, bytes / 8);
        if (!(s && s->capture) && ++emu.n_launches == emu.lose_launch) emu.lost = true;
        queue(s, o);
    }
    emu_unlock();
}

cudaError_t cudaLaunchHostFunc(cudaStream_t s, cudaHostFn_t fn, void *arg)
{
    emu_lock();
    cudaError_t rc = emu_may_fail(cudaErrorUnknown);
    if (!rc) {
        op *o = new_op(OP_HOST, 0);
        o->u.host.fn = fn;
        o->u.host.arg = arg;
        queue(s, o);
    }
    emu_unlock();
    return rc;
}

/* ---- graphs: a list of what was captured; instances are copies of it */

static struct CUgraph_st *new_graph(void)
{
    struct CUgraph_st *g = calloc(1, sizeof *g);
    if (!g) emu_fault("out of memory");
    g->tail = &g->head;
    emu.n_graphs++;
    return g;
}

static void append_copies(op ***tail, const op *from)
{
    for (; from; from = from->next) {
        op *o = new_op(from->kind, from->more_bytes);
        memcpy(o, from, sizeof *o + from->more_bytes);
        o->next = NULL;
        if (o->kind == OP_KERNEL) o->u.kernel.args = o->more;
        **tail = o;
        *tail = &o->next;
    }
}

static cudaError_t free_graph(struct CUgraph_st *g)
{
    emu_lock();
    for (op *o = g->head, *next; o; o = next) {
        next = o->next;
        free(o);
    }
    free(g);
    emu.n_graphs--;
    emu_unlock();
    return emu.lost ? cudaErrorLaunchFailure : cudaSuccess;
}

cudaError_t cudaStreamBeginCapture(cudaStream_t s, enum cudaStreamCaptureMode mode)
{
    emu_lock();
    cudaError_t rc = emu_may_fail(cudaErrorUnknown);
    if (mode != cudaStreamCaptureModeThreadLocal) emu_fault("this mode of capturing is not emulated");
    if (!rc && s->capture) rc = cudaErrorInvalidValue;
    if (!rc) s->capture = new_graph();
    emu_unlock();
    return rc;
}

/* Ends it whatever the result. */
cudaError_t cudaStreamEndCapture(cudaStream_t s, cudaGraph_t *graph)
{
    emu_lock();
    cudaError_t rc = emu_may_fail(cudaErrorUnknown);
    *graph = NULL;
    if (!s->capture && !rc) rc = cudaErrorInvalidValue;
    if (!rc)
        *graph = s->capture;
    else if (s->capture)
        (void)free_graph(s->capture);
    s->capture = NULL;
    emu_unlock();
    return rc;
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t *exec, cudaGraph_t graph, unsigned long long flags)
{
    (void)flags;
    emu_lock();
    cudaError_t rc = emu_may_fail(cudaErrorMemoryAllocation);
    *exec = NULL;
    if (!rc) {
        struct CUgraph_st *g = new_graph();
        append_copies(&g->tail, graph->head);
        *exec = (cudaGraphExec_t)(void *)g;
    }
    emu_unlock();
    return rc;
}

cudaError_t cudaGraphUpload(cudaGraphExec_t exec, cudaStream_t s)
{
    (void)exec, (void)s;
    emu_lock();
    cudaError_t rc = emu_may_fail(cudaErrorUnknown);
    emu_unlock();
    return rc;
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t s)
{
    struct CUgraph_st *g = (struct CUgraph_st *)(void *)exec;
    emu_lock();
    cudaError_t rc = emu_may_fail(cudaErrorUnknown);
    op *copy = NULL, **tail = &copy;
    if (!rc) {
        if (++emu.n_launches == emu.lose_launch) emu.lost = true;
        emu.n_graph_launches++;
        append_copies(&tail, g->head);
    }
    for (op *next; copy; copy = next) {
        next = copy->next;
        copy->next = NULL;
        queue(s, copy);
    }
    emu_unlock();
    return rc;
}

cudaError_t cudaGraphDestroy(cudaGraph_t graph)
{
    return free_graph(graph);
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec)
{
    return free_graph((struct CUgraph_st *)(void *)exec);
}

/* ---- streams */

cudaError_t cudaStreamCreateWithFlags(cudaStream_t *ret, unsigned int flags)
{
    static uint32_t n;
    emu_lock();
    cudaError_t rc = emu_may_fail(cudaErrorUnknown);
    if (!rc && flags != cudaStreamNonBlocking) emu_fault("streams that wait for the default stream are not emulated");
    struct CUstream_st *s = rc ? NULL : calloc(1, sizeof *s);
    if (!rc && !s) rc = cudaErrorMemoryAllocation;
    if (!rc) {
        *s = (struct CUstream_st) { .older = streams, .id = ++n, .tail = &s->head };
        streams = s;
        emu.n_streams++;
        if (from_environment) {
            state = ++emu.seed;
            (void)fprintf(stderr, "emulated GPU: seed %llu\n", (unsigned long long)emu.seed);
        }
        *ret = s;
    }
    emu_unlock();
    return rc;
}

cudaError_t cudaStreamDestroy(cudaStream_t s)
{
    emu_lock();
    finish(s, s->issued);
    emu.n_streams--;
    emu_unlock();
    return emu.lost ? cudaErrorLaunchFailure : cudaSuccess;
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream)
{
    struct CUstream_st *s = stream ? stream : &legacy;
    emu_lock();
    cudaError_t rc = emu_may_fail(cudaErrorUnknown);
    if (!rc) {
        finish(s, s->issued);
        some_progress();
    }
    emu_unlock();
    return rc;
}

/* Whoever asks often enough gets what he waits for. */
static cudaError_t query(struct CUstream_st *s, uint64_t at)
{
    if (s->done >= at) return cudaSuccess;
    emu_memory_open();
    while (!step(s) && !waits_for_host(s->head)) s = s->head->u.wait.s;
    emu_memory_close();
    return cudaErrorNotReady;
}

/* Half a second passes from one look to the next. */
uint64_t emu_clock_ns(void);
uint64_t emu_clock_ns(void)
{
    static uint64_t now;
    return now += 500000000;
}

cudaError_t cudaStreamQuery(cudaStream_t stream)
{
    struct CUstream_st *s = stream ? stream : &legacy;
    emu_lock();
    cudaError_t rc = emu_may_fail(cudaErrorUnknown);
    if (!rc) rc = query(s, s->issued);
    emu_unlock();
    return rc;
}

cudaError_t cudaDeviceSynchronize(void)
{
    emu_lock();
    cudaError_t rc = emu_may_fail(cudaErrorUnknown);
    if (!rc) emu_finish_all();
    emu_unlock();
    return rc;
}

cudaError_t cudaStreamWaitEvent(cudaStream_t s, cudaEvent_t e, unsigned int flags)
{
    (void)flags;
    emu_lock();
    cudaError_t rc = emu_may_fail(cudaErrorUnknown);
    if (!rc && e->s) {
        op *o = new_op(OP_WAIT, 0);
        o->u.wait.s = e->s;
        o->u.wait.at = e->at;
        queue(s, o);
    }
    emu_unlock();
    return rc;
}

/* ---- events */

cudaError_t cudaEventCreateWithFlags(cudaEvent_t *ret, unsigned int flags)
{
    (void)flags;
    emu_lock();
    cudaError_t rc = emu_may_fail(cudaErrorUnknown);
    cudaEvent_t e = rc ? NULL : calloc(1, sizeof *e);
    if (!rc && !e) rc = cudaErrorMemoryAllocation;
    if (!rc) {
        emu.n_events++;
        *ret = e;
    }
    emu_unlock();
    return rc;
}

cudaError_t cudaEventCreate(cudaEvent_t *e)
{
    return cudaEventCreateWithFlags(e, cudaEventDefault);
}

cudaError_t cudaEventDestroy(cudaEvent_t e)
{
    emu_lock();
    free(e);
    emu.n_events--;
    emu_unlock();
    return emu.lost ? cudaErrorLaunchFailure : cudaSuccess;
}

cudaError_t cudaEventRecord(cudaEvent_t e, cudaStream_t stream)
{
    struct CUstream_st *s = stream ? stream : &legacy;
    emu_lock();
    cudaError_t rc = emu_may_fail(cudaErrorUnknown);
    if (!rc) {
        e->s = s;
        e->at = s->issued + 1;
        queue(s, new_op(OP_RECORD, 0));
    }
    emu_unlock();
    return rc;
}

cudaError_t cudaEventQuery(cudaEvent_t e)
{
    emu_lock();
    cudaError_t rc = emu_may_fail(cudaErrorUnknown);
    if (!rc && e->s) rc = query(e->s, e->at);
    emu_unlock();
    return rc;
}

cudaError_t cudaEventSynchronize(cudaEvent_t e)
{
    emu_lock();
    cudaError_t rc = emu_may_fail(cudaErrorUnknown);
    if (!rc && e->s) finish(e->s, e->at);
    emu_unlock();
    return rc;
}

/* There is no clock that would mean anything. */
cudaError_t cudaEventElapsedTime(float *ms, cudaEvent_t a, cudaEvent_t b)
{
    emu_lock();
    cudaError_t rc = emu_may_fail(cudaErrorUnknown);
    if (!rc && (!a->s || !b->s)) rc = cudaErrorInvalidResourceHandle;
    if (!rc && (a->s->done < a->at || b->s->done < b->at)) rc = cudaErrorNotReady;
    *ms = 1;
    emu_unlock();
    return rc;
}

/* ---- the device */

cudaError_t cudaGetDeviceCount(int *n)
{
    emu_lock();
    cudaError_t rc = emu_may_fail(cudaErrorUnknown);
    *n = 1;
    emu_unlock();
    return rc;
}

cudaError_t cudaSetDevice(int device)
{
    emu_lock();
    cudaError_t rc = emu_may_fail(cudaErrorUnknown);
    if (!rc && device != 0) rc = cudaErrorInvalidDevice;
    emu_unlock();
    return rc;
}

cudaError_t cudaGetDevice(int *device)
{
    *device = 0;
    return cudaSuccess;
}

cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *p, int device)
{
    emu_lock();
    cudaError_t rc = emu_may_fail(cudaErrorUnknown);
    if (!rc && device != 0) rc = cudaErrorInvalidDevice;
    if (!rc)
        *p = (struct cudaDeviceProp) { .name = "emulated GPU",
                                       .uuid = { "krasis emulator" },
                                       .totalGlobalMem = (size_t)4 << 30,
                                       .sharedMemPerBlock = 48 << 10,
                                       .sharedMemPerBlockOptin = EMU_SHARED_MAX,
                                       .major = 9,
                                       .multiProcessorCount = EMU_SMS,
                                       .warpSize = 32,
                                       .maxThreadsPerBlock = EMU_THREADS_MAX };
    emu_unlock();
    return rc;
}

cudaError_t cudaGetLastError(void)
{
    emu_lock();
    cudaError_t rc = emu.lost ? cudaErrorLaunchFailure : last_error;
    last_error = cudaSuccess;
    emu_unlock();
    return rc;
}

cudaError_t cudaPeekAtLastError(void)
{
    emu_lock();
    cudaError_t rc = emu.lost ? cudaErrorLaunchFailure : last_error;
    emu_unlock();
    return rc;
}

const char *cudaGetErrorString(cudaError_t rc)
{
    switch (rc) {
    case cudaSuccess: return "no error";
    case cudaErrorInvalidValue: return "invalid argument";
    case cudaErrorMemoryAllocation: return "out of memory";
    case cudaErrorInvalidConfiguration: return "invalid configuration argument";
    case cudaErrorNoDevice: return "no CUDA-capable device is detected";
    case cudaErrorInvalidDevice: return "invalid device ordinal";
    case cudaErrorInvalidResourceHandle: return "invalid resource handle";
    case cudaErrorNotReady: return "device not ready";
    case cudaErrorHostMemoryAlreadyRegistered: return "part or all of the requested memory range is already mapped";
    case cudaErrorHostMemoryNotRegistered: return "pointer does not correspond to a registered memory region";
    case cudaErrorLaunchTimeout: return "the launch timed out and was terminated";
    case cudaErrorLaunchFailure: return "unspecified launch failure";
    default: return "unknown error";
    }
}
