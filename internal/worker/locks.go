package worker

import "sync"

// locks is a set of locks by name, which exist while they are used.
type locks struct {
	mu    sync.Mutex
	named map[string]*namedLock // guarded by mu
}

type namedLock struct {
	sync.Mutex
	users int // guarded by locks.mu
}

// lock waits until nobody else has the name.
func (l *locks) lock(name string) (unlock func()) {
	lock := l.enter(name)
	lock.Lock()
	return func() {
		lock.Unlock()
		l.leave(name, lock)
	}
}

func (l *locks) enter(name string) *namedLock {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.named == nil {
		l.named = make(map[string]*namedLock)
	}
	lock := l.named[name]
	if lock == nil {
		lock = &namedLock{}
		l.named[name] = lock
	}
	lock.users++
	return lock
}

func (l *locks) leave(name string, lock *namedLock) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if lock.users--; lock.users == 0 {
		delete(l.named, name)
	}
}
