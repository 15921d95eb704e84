/* asm_amd64_windows.S: gmp_switch, gmp_call_on and gmp_trampoline for x86-64 on Windows.
 *
 * A parked context, from its saved stack pointer upwards (gobuf_init builds the same):
 *     xmm6 ... xmm15 | StackBase StackLimit DeallocationStack | unused | r15 r14 r13 r12 rsi rdi rbx rbp | return address
 * The three words are the thread's (in its TEB, at gs): the system looks up in them whether an address is on the stack, when it
 * dispatches an exception or lets a stack grow.  They go with the context, as they do for Windows' own fibers.
 */
#if defined(__x86_64__) && defined(_WIN32)

    .text
    .globl gmp_switch
    .def gmp_switch; .scl 2; .type 32; .endef
    .p2align 5
    .seh_proc gmp_switch
gmp_switch:                             /* rcx = save_sp, rdx = to_sp */
    pushq %rbp
    .seh_pushreg %rbp
    pushq %rbx
    .seh_pushreg %rbx
    pushq %rdi
    .seh_pushreg %rdi
    pushq %rsi
    .seh_pushreg %rsi
    pushq %r12
    .seh_pushreg %r12
    pushq %r13
    .seh_pushreg %r13
    pushq %r14
    .seh_pushreg %r14
    pushq %r15
    .seh_pushreg %r15
    subq $192, %rsp
    .seh_stackalloc 192
    .seh_endprologue                    /* an unwinder has no use for the xmm registers of a caller in C */
    movups %xmm6, 0(%rsp)
    movups %xmm7, 16(%rsp)
    movups %xmm8, 32(%rsp)
    movups %xmm9, 48(%rsp)
    movups %xmm10, 64(%rsp)
    movups %xmm11, 80(%rsp)
    movups %xmm12, 96(%rsp)
    movups %xmm13, 112(%rsp)
    movups %xmm14, 128(%rsp)
    movups %xmm15, 144(%rsp)
    movq %gs:0x8, %rax
    movq %rax, 160(%rsp)
    movq %gs:0x10, %rax
    movq %rax, 168(%rsp)
    movq %gs:0x1478, %rax
    movq %rax, 176(%rsp)
    movq %rsp, (%rcx)
    movq %rdx, %rsp                     /* the other stack has the same layout: the unwind rules stay true */
    movq 160(%rsp), %rax
    movq %rax, %gs:0x8
    movq 168(%rsp), %rax
    movq %rax, %gs:0x10
    movq 176(%rsp), %rax
    movq %rax, %gs:0x1478
    movups 0(%rsp), %xmm6
    movups 16(%rsp), %xmm7
    movups 32(%rsp), %xmm8
    movups 48(%rsp), %xmm9
    movups 64(%rsp), %xmm10
    movups 80(%rsp), %xmm11
    movups 96(%rsp), %xmm12
    movups 112(%rsp), %xmm13
    movups 128(%rsp), %xmm14
    movups 144(%rsp), %xmm15
    addq $192, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rsi
    popq %rdi
    popq %rbx
    popq %rbp
    ret
    .seh_endproc

    .globl gmp_call_on
    .def gmp_call_on; .scl 2; .type 32; .endef
    .p2align 4
    .seh_proc gmp_call_on
gmp_call_on:                            /* rcx = sp, rdx = fn, r8 = arg */
    pushq %rbp
    .seh_pushreg %rbp
    movq %rsp, %rbp
    .seh_setframe %rbp, 0
    .seh_endprologue
    pushq %gs:0x8
    pushq %gs:0x10
    pushq %gs:0x1478
    andq $-16, %rcx
    xorl %eax, %eax
    movq %rcx, %gs:0x8                  /* where that stack begins is not known: anywhere below */
    movq %rax, %gs:0x10
    movq %rax, %gs:0x1478
    leaq -32(%rcx), %rsp
    movq %r8, %rcx
    callq *%rdx
    movq -8(%rbp), %rax
    movq %rax, %gs:0x8
    movq -16(%rbp), %rax
    movq %rax, %gs:0x10
    movq -24(%rbp), %rax
    movq %rax, %gs:0x1478
    movq %rbp, %rsp
    popq %rbp
    ret
    .seh_endproc

    .globl gmp_trampoline
    .def gmp_trampoline; .scl 2; .type 32; .endef
    .p2align 4
    .seh_proc gmp_trampoline
gmp_trampoline:                         /* rbx = entry, r12 = arg, rbp = 0; rsp is a multiple of 16 */
    subq $32, %rsp                      /* the callee's own, by the ABI */
    .seh_stackalloc 32
    .seh_endprologue
    movq %r12, %rcx
    callq *%rbx
    ud2                                 /* entry returned */
    .seh_endproc

#endif
