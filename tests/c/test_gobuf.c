/* test_gobuf.c: switching contexts: registers, alignment, the end of the stack, unwinding. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "test.h"

#ifndef _WIN32
#include <pthread.h>
#endif

#include "stack.h"

#define STACK ((size_t)256 << 10)

static Gobuf main_buf, buf_a, buf_b;
static long turns;

/* A context on a slot of its own. */
static char *
spawn(Gobuf *buf, void (*entry)(void *), void *arg)
{
    char *lo = stack_alloc(STACK_256K);
    size_t size = stack_class_size(STACK_256K);

    CHECK(lo != NULL);
    gobuf_set_stack(buf, lo, size);
    gobuf_init(buf, lo + size, entry, arg);
    return lo;
}

static void
turn_for_ever(void *arg)
{
    gobuf_entered();
    for (;;) {
        turns++;
        gobuf_switch(arg, &main_buf, false);
    }
}

TEST(switch_ping_pong)
{
    long n = test_slow() ? 100000 : 1000000;
    int64_t start;

    gobuf_init_thread(&main_buf);
    spawn(&buf_a, turn_for_ever, &buf_a);
    start = nanotime();
    for (long i = 0; i < n; i++)
        gobuf_switch(&main_buf, &buf_a, false);
    LOG("%.2f ns a switch\n", (double)(nanotime() - start) / (double)(2 * n));
    CHECK_EQ(turns, n);
    gobuf_destroy(&buf_a);
}

/* ---- entry: argument, stack alignment, position ---- */

static void *got_arg;
static uintptr_t got_sp;

#if defined(_WIN32)
#define HOME 32 /* a function's caller leaves it so much above the return address */
#else
#define HOME 0
#endif

/* How this system's assembler writes a hidden function. */
#if defined(__APPLE__)
#define NAME(x) "_" x
#define FUNCTION(x) ".text\n.globl _" x "\n.private_extern _" x "\n_" x ":\n"
#elif defined(_WIN32)
#define NAME(x) x
#define FUNCTION(x) ".text\n.globl " x "\n" x ":\n"
#else
#define NAME(x) x
#define FUNCTION(x) ".text\n.globl " x "\n.hidden " x "\n" x ":\n"
#endif

/* Takes the stack pointer as the ABI promises it at a function's entry. */
#if defined(_WIN32)
__asm__(FUNCTION("gobuf_test_entry") "  lea 8(%rsp), %rdx\n  jmp gobuf_test_entry_c\n");
#elif defined(__x86_64__)
__asm__(FUNCTION("gobuf_test_entry") "  lea 8(%rsp), %rsi\n  jmp " NAME("gobuf_test_entry_c") "\n");
#elif defined(__aarch64__)
__asm__(FUNCTION("gobuf_test_entry") "  hint #34\n  mov x1, sp\n  b " NAME("gobuf_test_entry_c") "\n");
#endif
GMP_HIDDEN void gobuf_test_entry(void *arg);
GMP_HIDDEN void gobuf_test_entry_c(void *arg, uintptr_t sp);

__attribute__((used)) void
gobuf_test_entry_c(void *arg, uintptr_t sp)
{
    gobuf_entered();
    got_arg = arg;
    got_sp = sp;
    gobuf_switch(&buf_a, &main_buf, true);
    CHECK(!"came back");
}

TEST(entry_gets_argument_and_aligned_stack)
{
    int x;

    gobuf_init_thread(&main_buf);
    for (size_t slack = 0; slack < 33; slack++) {
        char *lo = stack_alloc(STACK_256K), *top = lo + stack_class_size(STACK_256K) - slack;
        gobuf_set_stack(&buf_a, lo, stack_class_size(STACK_256K));
        gobuf_init(&buf_a, top, gobuf_test_entry, &x);
        CHECK((char *)buf_a.sp >= top - 16 - GOBUF_FRAME);
        got_arg = NULL;
        gobuf_switch(&main_buf, &buf_a, false);
        CHECK(got_arg == &x);
        CHECK_EQ(got_sp % 16, 0);
        CHECK(got_sp <= (uintptr_t)top && got_sp > (uintptr_t)top - 16 - HOME); /* all of the stack is there to use */
        stack_free(STACK_256K, lo);
    }
}

/* ---- registers ---- */

/* gobuf_test_regs(save_sp, to_sp, values, out): loads every callee-saved register from values, switches, stores what
 * they hold after coming back in out, and restores the caller's.  N_REGS words. */
GMP_HIDDEN void gobuf_test_regs(void **save_sp, void *to_sp, const uint64_t *values, uint64_t *out);
#if defined(_WIN32)
#define N_REGS 28 /* the last 20 are xmm6 to xmm15 */
#define XMM(n, at, from, to) "  movups " from(#n, #at) ", " to(#n, #at) "\n"
#define REG(n, at) "%xmm" n
#define MEM(n, at) at "(%r8)"
#define EACH_XMM(from, to)                                                                                             \
    XMM(6, 64, from, to)                                                                                               \
    XMM(7, 80, from, to)                                                                                               \
    XMM(8, 96, from, to)                                                                                               \
    XMM(9, 112, from, to)                                                                                              \
    XMM(10, 128, from, to)                                                                                             \
    XMM(11, 144, from, to)                                                                                             \
    XMM(12, 160, from, to) XMM(13, 176, from, to) XMM(14, 192, from, to) XMM(15, 208, from, to)
#define SPILL(n, at) at "(%rsp)"
__asm__(FUNCTION("gobuf_test_regs")
        "  push %rbp\n  push %rbx\n  push %rdi\n  push %rsi\n  push %r12\n  push %r13\n  push %r14\n  push %r15\n  push %r9\n"
        "  sub $224, %rsp\n" EACH_XMM(REG, SPILL)
        "  mov (%r8), %rbp\n  mov 8(%r8), %rbx\n  mov 16(%r8), %r12\n  mov 24(%r8), %r13\n  mov 32(%r8), %r14\n"
        "  mov 40(%r8), %r15\n  mov 48(%r8), %rdi\n  mov 56(%r8), %rsi\n" EACH_XMM(MEM, REG)
        "  call gmp_switch\n"
        "  mov 224(%rsp), %r8\n"
        "  mov %rbp, (%r8)\n  mov %rbx, 8(%r8)\n  mov %r12, 16(%r8)\n  mov %r13, 24(%r8)\n  mov %r14, 32(%r8)\n"
        "  mov %r15, 40(%r8)\n  mov %rdi, 48(%r8)\n  mov %rsi, 56(%r8)\n" EACH_XMM(REG, MEM) EACH_XMM(SPILL, REG)
        "  add $232, %rsp\n"
        "  pop %r15\n  pop %r14\n  pop %r13\n  pop %r12\n  pop %rsi\n  pop %rdi\n  pop %rbx\n  pop %rbp\n  ret\n");
#elif defined(__x86_64__)
#define N_REGS 6
__asm__(FUNCTION("gobuf_test_regs")
        "  push %rbp\n  push %rbx\n  push %r12\n  push %r13\n  push %r14\n  push %r15\n  push %rcx\n"
        "  mov (%rdx), %rbp\n  mov 8(%rdx), %rbx\n  mov 16(%rdx), %r12\n"
        "  mov 24(%rdx), %r13\n  mov 32(%rdx), %r14\n  mov 40(%rdx), %r15\n"
        "  call " NAME("gmp_switch") "\n"
        "  pop %rcx\n"
        "  mov %rbp, (%rcx)\n  mov %rbx, 8(%rcx)\n  mov %r12, 16(%rcx)\n"
        "  mov %r13, 24(%rcx)\n  mov %r14, 32(%rcx)\n  mov %r15, 40(%rcx)\n"
        "  pop %r15\n  pop %r14\n  pop %r13\n  pop %r12\n  pop %rbx\n  pop %rbp\n  ret\n");
#elif defined(__aarch64__)
#define N_REGS 19
__asm__(FUNCTION("gobuf_test_regs")
        "  hint #34\n"
        "  sub sp, sp, #176\n"
        "  stp x19, x20, [sp, #0]\n  stp x21, x22, [sp, #16]\n  stp x23, x24, [sp, #32]\n  stp x25, x26, [sp, #48]\n"
        "  stp x27, x28, [sp, #64]\n  stp x29, x30, [sp, #80]\n  stp d8, d9, [sp, #96]\n  stp d10, d11, [sp, #112]\n"
        "  stp d12, d13, [sp, #128]\n  stp d14, d15, [sp, #144]\n  str x3, [sp, #160]\n"
        "  ldp x19, x20, [x2, #0]\n  ldp x21, x22, [x2, #16]\n  ldp x23, x24, [x2, #32]\n  ldp x25, x26, [x2, #48]\n"
        "  ldp x27, x28, [x2, #64]\n  ldr x29, [x2, #80]\n  ldp d8, d9, [x2, #88]\n  ldp d10, d11, [x2, #104]\n"
        "  ldp d12, d13, [x2, #120]\n  ldp d14, d15, [x2, #136]\n"
        "  bl " NAME("gmp_switch") "\n"
        "  ldr x3, [sp, #160]\n"
        "  stp x19, x20, [x3, #0]\n  stp x21, x22, [x3, #16]\n  stp x23, x24, [x3, #32]\n  stp x25, x26, [x3, #48]\n"
        "  stp x27, x28, [x3, #64]\n  str x29, [x3, #80]\n  stp d8, d9, [x3, #88]\n  stp d10, d11, [x3, #104]\n"
        "  stp d12, d13, [x3, #120]\n  stp d14, d15, [x3, #136]\n"
        "  ldp x19, x20, [sp, #0]\n  ldp x21, x22, [sp, #16]\n  ldp x23, x24, [sp, #32]\n  ldp x25, x26, [sp, #48]\n"
        "  ldp x27, x28, [sp, #64]\n  ldp x29, x30, [sp, #80]\n  ldp d8, d9, [sp, #96]\n  ldp d10, d11, [sp, #112]\n"
        "  ldp d12, d13, [sp, #128]\n  ldp d14, d15, [sp, #144]\n"
        "  add sp, sp, #176\n  ret\n");
#endif

static uint64_t values_a[32], values_b[32], out_a[32], out_b[32];

static void
regs_entry(void *arg)
{
    (void)arg;
    for (;;) {
        gobuf_test_regs(&buf_a.sp, main_buf.sp, values_b, out_b);
        for (int i = 0; i < N_REGS; i++)
            CHECK_EQ(out_b[i], values_b[i]);
        turns++;
    }
}

TEST(switch_preserves_callee_saved_registers)
{
#if defined(GMP_ASAN) || defined(GMP_TSAN)
    SKIP("switches below the sanitizer's hooks");
#endif
    for (int i = 0; i < N_REGS; i++) {
        values_a[i] = UINT64_C(0xa0a0a0a000000000) + (uint64_t)i;
        values_b[i] = UINT64_C(0xb0b0b0b000000000) + (uint64_t)i;
    }
    spawn(&buf_a, regs_entry, NULL);
    for (int n = 0; n < 10; n++) {
        gobuf_test_regs(&main_buf.sp, buf_a.sp, values_a, out_a);
        for (int i = 0; i < N_REGS; i++)
            CHECK_EQ(out_a[i], values_a[i]);
    }
    CHECK_EQ(turns, 9);
}

static double
work(Gobuf *self, double x)
{
    double a = x, b = x + 1, c = x + 2, d = x + 3, e = x + 4, f = x + 5, g = x + 6, h = x + 7;

    for (int i = 0; i < 1000; i++) {
        gobuf_switch(self, &main_buf, false);
        a += b * 0.5, b -= c * 0.25, c += d, d -= e, e += f * 0.125, f -= g, g += h, h -= a * 0.0625;
    }
    return a + b + c + d + e + f + g + h;
}

static double results[2];

static void
fp_entry(void *arg)
{
    gobuf_entered();
    results[arg == &buf_b] = work(arg, 1.5);
    for (;;)
        gobuf_switch(arg, &main_buf, false);
}

TEST(switch_preserves_floating_point)
{
    gobuf_init_thread(&main_buf);
    spawn(&buf_a, fp_entry, &buf_a);
    spawn(&buf_b, fp_entry, &buf_b);
    for (int i = 0; i < 1002; i++) {
        gobuf_switch(&main_buf, &buf_a, false);
        gobuf_switch(&main_buf, &buf_b, false);
    }
    CHECK(results[0] != 0 && memcmp(&results[0], &results[1], sizeof(double)) == 0);
}

/* ---- depth ---- */

static GMP_NOINLINE int
recurse(int depth)
{
    volatile char pad[512];

    pad[0] = (char)depth;
    pad[511] = 1;
    return depth <= 0 ? pad[511] : recurse(depth - 1) + pad[0];
}

static void
recurse_entry(void *arg)
{
    gobuf_entered();
    recurse((int)(intptr_t)arg);
    gobuf_switch(&buf_a, &main_buf, true);
}

static void
run_deep(void *arg)
{
    gobuf_init_thread(&main_buf);
    spawn(&buf_a, recurse_entry, arg);
    gobuf_switch(&main_buf, &buf_a, false);
}

TEST(deep_recursion_fits)
{
    run_deep((void *)(intptr_t)(test_slow() ? 50 : 400)); /* of some 480 */
}

TEST(endless_recursion_hits_the_guard)
{
    if (sys_guard_kind() == GUARD_NONE)
        SKIP("no guards here");
    CHECK_DIES(SIGSEGV, run_deep, (void *)(intptr_t)1000000);
}

/* ---- reuse, threads, unwinding ---- */

static void
short_life(void *arg)
{
    char frame[512]; /* its red zones stay behind when the context dies below */

    gobuf_entered();
    memset(frame, (int)(intptr_t)arg, sizeof(frame));
    __asm__ volatile("" ::"r"(frame) : "memory");
    turns++;
    gobuf_switch(&buf_a, &main_buf, true);
}

static void
other_life(void *arg)
{
    char frame[3000];

    gobuf_entered();
    memset(frame, (int)(intptr_t)arg, sizeof(frame));
    __asm__ volatile("" ::"r"(frame) : "memory");
    turns++;
    gobuf_switch(&buf_a, &main_buf, true);
}

/* Also more lives than ThreadSanitizer has fibres: none may leak. */
TEST(context_reused_after_death)
{
    char *lo = stack_alloc(STACK_256K);
    size_t size = stack_class_size(STACK_256K);

    gobuf_init_thread(&main_buf);
    gobuf_set_stack(&buf_a, lo, size);
    for (int i = 0; i < 10000; i++) {
        gobuf_init(&buf_a, lo + size - 64, i % 3 ? short_life : other_life, (void *)(intptr_t)i);
        if (i % 5 == 0) /* born twice without a life in between */
            gobuf_init(&buf_a, lo + size, other_life, NULL);
        gobuf_switch(&main_buf, &buf_a, false);
    }
    CHECK_EQ(turns, 10000);
    gobuf_destroy(&buf_a);
    gobuf_destroy(&main_buf);
}

static Gobuf thread_buf[2];
static int on_thread;

static void
migrating(void *arg)
{
    (void)arg;
    gobuf_entered();
    for (;;) {
        turns++;
        gobuf_switch(&buf_a, &thread_buf[on_thread], false);
    }
}

static void
migrate_to(void *arg)
{
    on_thread = (int)(intptr_t)arg;
    gobuf_init_thread(&thread_buf[on_thread]);
    for (int i = 0; i < 100; i++)
        gobuf_switch(&thread_buf[on_thread], &buf_a, false);
}

TEST(context_continues_on_another_thread)
{
    spawn(&buf_a, migrating, NULL);
    for (intptr_t i = 0; i < 6; i++)
        test_join(test_thread(migrate_to, (void *)(i % 2)));
    CHECK_EQ(turns, 600);
}

#ifndef _WIN32 /* its threads end without unwinding */
static int cleaned;

static void
clean(void *arg)
{
    (void)arg;
    cleaned++;
}

static void
exit_thread_entry(void *arg)
{
    (void)arg;
    gobuf_entered();
    pthread_cleanup_push(clean, NULL);
    pthread_exit(NULL);
    pthread_cleanup_pop(0);
}

static void
exit_on_context(void *arg)
{
    (void)arg;
    gobuf_init_thread(&main_buf);
    spawn(&buf_a, exit_thread_entry, NULL);
    gobuf_switch(&main_buf, &buf_a, false);
    CHECK(!"the thread has ended");
}

/* glibc unwinds the stack for pthread_exit: it must find the end at the trampoline, and then ends the thread. */
TEST(pthread_exit_on_a_context)
{
#if defined(GMP_ASAN) || defined(GMP_TSAN)
    SKIP("the sanitizers expect a thread to end on its own stack");
#endif
    test_join(test_thread(exit_on_context, NULL));
    CHECK_EQ(cleaned, 1);
}
#endif

#if defined(__GLIBC__)
#include <execinfo.h>

static int frames;

static GMP_NOINLINE void
look_back(int depth)
{
    void *pc[64];

    if (depth > 0)
        look_back(depth - 1);
    else
        frames = backtrace(pc, 64);
    __asm__ volatile("" ::: "memory");
}

static void
backtrace_entry(void *arg)
{
    gobuf_entered();
    look_back((int)(intptr_t)arg);
    gobuf_switch(&buf_a, &main_buf, true);
}

TEST(backtrace_ends_at_the_trampoline)
{
    gobuf_init_thread(&main_buf);
    spawn(&buf_a, backtrace_entry, (void *)(intptr_t)5);
    gobuf_switch(&main_buf, &buf_a, false);
    LOG("%d frames\n", frames);
    CHECK(frames >= 8 && frames <= 10); /* six of look_back, the entry, the trampoline; the tool's own */
}
#endif
